"""What a run will cost, found by doing a little of it: one pass of phase 2 that is thrown away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .config import TrainConfig
from .dataset import Batch, Dataset, step_items
from .optimizers import STATE_BYTES
from .trainer import open_run

if TYPE_CHECKING:
    from .backbone import Backbone

STEPS_LOOKED_AT = 20  # for one that asks for a likeness: one in a few does, where any does
BYTES_PER_TRAINABLE = 8  # the weight and its gradient; what the optimizer keeps comes on top


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """seconds: of one step of phase 2, and of the whole run without its previews. peak_bytes: of device memory, at
    least."""

    seconds_per_step: float
    total_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"about {self.seconds_per_step:.2g} s a step, {self.total_seconds / 60:.1f} minutes in all, "
            f"sample pictures not counted, at least {self.peak_bytes / 2**30:.1f} GB of memory"
        )


def estimate(backbone: Backbone, dataset: Dataset, config: TrainConfig) -> Estimate:
    """Times a group of items of phase 2, in which a likeness is asked for where one ever is, after a pass to warm up.

    A run draws by counted randomness, so this cannot disturb it. On a graphics card the peak is measured, elsewhere it
    is counted: weights, 16 bytes a trained number under AdamW, and the activations that a pass keeps.
    """
    num_items = {phase: len(step_items(config, phase, 0)) for phase in ("inversion", "tuning")}
    batches = _a_group(dataset, config)
    device, kept_bytes = backbone.unet.device, 0
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        float(run.backward(batches[0], "tuning", share=1.0).sum())  # reading it waits for the device
        started = time.perf_counter()
        for batch in batches:
            with _kept_bytes() as kept:
                float(run.backward(batch, "tuning", share=1.0).sum())
            kept_bytes = max(kept_bytes, sum(kept.values()))
        seconds = (time.perf_counter() - started) * num_items["tuning"] / sum(len(batch.prompts) for batch in batches)
        trainable = sum(parameter.numel() for parameter in run.trainable())
    parts = (backbone.unet, backbone.text_encoder)
    frozen = sum(weight.numel() * weight.element_size() for part in parts for weight in part.parameters())
    remembered = trainable * STATE_BYTES[config.optimizer]  # from the first step on, which this is not
    counted = frozen + trainable * BYTES_PER_TRAINABLE + remembered + kept_bytes
    measured = torch.cuda.max_memory_allocated(device) + remembered if device.type == "cuda" else 0
    share = num_items["inversion"] / num_items["tuning"]
    return Estimate(
        seconds_per_step=seconds,
        total_seconds=seconds * (config.inversion.num_steps * share + config.tuning.num_steps),
        peak_bytes=measured or counted,
    )


def _a_group(dataset: Dataset, config: TrainConfig) -> list[Batch]:
    """The passes of one item of each task, or of a whole batch where that is more; of the first step that asks for a
    likeness, or else of the first."""
    size = config.batch_size
    steps = [step_items(config, "tuning", step) for step in range(STEPS_LOOKED_AT)]
    group = max(size, len(steps[0]) // config.accumulate)
    items = next((items for items in steps if dataset.draw(config, items[:group]).identity_items), steps[0])[:group]
    return [dataset.draw(config, items[start : start + size]) for start in range(0, len(items), size)]


@contextmanager
def _kept_bytes() -> Iterator[dict[int, int]]:
    """Storage address -> bytes of every activation that autograd keeps inside the block; weights do not count."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Any:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.grad_fn is not None:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
