"""What a run will cost, found by doing a little of it: one pass of its dearest phase that is thrown away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .optimizers import STATE_BYTES
from .run import Batch, TrainingRun

STEPS_LOOKED_AT = 20  # for one that asks for a likeness: one in a few does, where any does
BYTES_PER_TRAINABLE = 8  # the weight and its gradient; what the optimizer keeps comes on top


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """seconds: of one step of the dearest phase, and of the whole run without its previews. peak_bytes: of device
    memory, at least."""

    seconds_per_step: float
    total_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"about {self.seconds_per_step:.2g} s a step, {self.total_seconds / 60:.1f} minutes in all, "
            f"sample pictures not counted, at least {self.peak_bytes / 2**30:.1f} GB of memory"
        )


def estimate(opened: AbstractContextManager[TrainingRun]) -> Estimate:
    """Times a group of items of the dearest phase, in which a likeness is asked for where one ever is; on a graphics
    card after a pass to warm up. opened: a fresh run.

    A run draws by counted randomness, so this cannot disturb another. On a graphics card the peak is measured,
    elsewhere it is counted: weights, 16 bytes a trained number under AdamW, and the activations that a pass keeps.
    """
    with opened as run:
        is_measured = run.device.type == "cuda"
        num_items = {phase: len(run.crew.share(run.items(phase, 0))) for phase in run.phases}
        phase = run.dearest_phase
        batches = _a_group(run, phase)
        parts, kept_bytes = (run.backbone.unet, run.backbone.text_encoder), 0
        run.begin(phase, {}, midway=False)
        fixed = [weight for part in parts for weight in part.parameters() if not weight.requires_grad]
        frozen = sum(weight.numel() * weight.element_size() for weight in fixed)
        if is_measured:
            torch.cuda.reset_peak_memory_stats(run.device)
            float(run.backward(batches[0], phase, share=1.0).sum())  # reading it waits for the device
        started = time.perf_counter()
        for batch in batches:
            with nullcontext({}) if is_measured else _kept_bytes() as kept:
                float(run.backward(batch, phase, share=1.0).sum())
            kept_bytes = max(kept_bytes, sum(kept.values()))
        seconds = (time.perf_counter() - started) / sum(len(batch.timesteps) for batch in batches)  # an item
        trainable = sum(parameter.numel() for parameter in run.trainable())
        remembered = trainable * STATE_BYTES[run.config.optimizer]  # from the first step on, which this is not
        counted = frozen + trainable * BYTES_PER_TRAINABLE + kept_bytes
        peak = torch.cuda.max_memory_allocated(run.device) if is_measured else counted
        return Estimate(
            seconds_per_step=seconds * num_items[phase],
            total_seconds=seconds * sum(run.phases[name] * num_items[name] for name in run.phases),
            peak_bytes=peak + remembered,
        )


def _a_group(run: TrainingRun, phase: str) -> list[Batch]:
    """The passes of one item of each task, or of a whole batch where that is more; of the first step that asks for a
    likeness, or else of the first."""
    size = run.config.batch_size
    steps = [run.items(phase, step) for step in range(STEPS_LOOKED_AT)]
    group = max(size, len(steps[0]) // run.config.accumulate)
    items = next((items for items in steps if run.num_identity(run.draw(items[:group]))), steps[0])[:group]
    return [run.draw(items[start : start + size]) for start in range(0, len(items), size)]


@contextmanager
def _kept_bytes() -> Iterator[dict[int, int]]:
    """Storage address -> bytes of every activation that autograd keeps inside the block; weights do not count."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Any:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.grad_fn is not None:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, where it is its own function's output, would hold on to the graph for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
