"""The whole line on one page: portraits in, a shareable LoRA out, and a state on the disk in between.

`personalize` is what the terminal and the node both call; the caller owns progress, previews and the decision to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import kohya
from .artifact import NAME_LENGTH, Artifact, check_name
from .config import TrainConfig
from .dataset import encode
from .estimate import Estimate, estimate
from .identity import Likeness, Recogniser
from .images import save_image
from .kept import Kept, Result, Told, result_key
from .prompts import TEMPLATES
from .trainer import DTYPES, Run, TrainStep, train
from .types import MagiCaptureError, Portraits
from .watch import Watch, best_look

if TYPE_CHECKING:
    from .backbone import Backbone

STATE_EVERY = 100  # steps between two states on the disk
OUT_OF_MEMORY = (
    "out of memory, with gradient_checkpointing and {batch_size} pictures at once too: close what else uses the memory "
    "and resume at the last step; or train anew with a smaller resolution or lora_rank"
)
RETRY = "out of memory: goes on with gradient_checkpointing and {batch_size} pictures at once; the result is the same"
BEST = "_best"  # behind the name


def personalize(
    backbone: Backbone,
    subject: Portraits,
    style: Portraits,
    config: TrainConfig,
    *,
    name: str,
    folder: Path,
    save: Callable[[Artifact], list[Path]],
    key: str = "",
    recogniser: Recogniser | None = None,
    device: torch.device | str = "cpu",
    resume: bool = True,
    on_estimate: Callable[[Estimate], None] = lambda estimate: None,
    on_step: Callable[[TrainStep], None] = lambda step: None,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Encode, invert, tune, save. The backbone is moved to the device and the configuration's precision.

    folder: keeps the state and the result of this name. save: puts the artifact where it belongs, returns its files.
    key: the `result_key` of these inputs, from a caller who has it: computing it reads every weight.
    on_step may look at the live run, make previews, and raise whatever it likes to stop: the state is then on the disk,
    as it is after any fault, and the next call with the same inputs and `resume` goes on from it, bit for bit. Where
    memory runs out, the same run goes on by itself with less of it, which `say` tells. watch: when the run is looked
    at; the pictures lie in `Kept.samples` and `Kept.looks`, and the most alike step is saved too, as NAME_best.
    """
    check_name(name)
    if not config.inversion.num_steps + config.tuning.num_steps:
        raise MagiCaptureError("nothing to train: inversion.num_steps and tuning.num_steps are both 0")
    key = key or result_key(backbone, subject, style, config, recogniser, watch)
    check_weights(backbone)
    backbone.to(torch.device(device), resolve_dtype(config, torch.device(device)))
    kept = Kept(folder, key)
    if not resume:
        kept.state_file.unlink(missing_ok=True)

    def attempt(config: TrainConfig) -> Result:
        dataset = encode(backbone, subject, style, config, recogniser)
        on_estimate(estimate(backbone, dataset, config))
        state, told = kept.load_state()
        resumed_from, result = len(told.history), None

        def keep(step: TrainStep) -> None:
            kept.save_state(step.state(), told)

        def finish(step: TrainStep) -> Result:
            files = save(to_artifact(step.run, name))
            return Result(key=key, files=files, told=told, resumed_from=resumed_from)

        with closing(train(backbone, dataset, config, state)) as steps:
            for step in _kept_at_a_fault(steps, keep):
                told.add(step.losses)
                if step.step == step.num_steps:  # kept before anyone can say stop
                    result = finish(step)
                    kept.save_result(result)
                elif step.step % STATE_EVERY == 0:
                    keep(step)
                try:
                    if watch is not None and watch.is_due(step):
                        _look(watch, step, dataset.likeness, told, kept)
                    on_step(step)
                except BaseException:  # the host's own way to say stop may be none of Exception's
                    if result is None:
                        keep(step)
                    raise
                if result is None and watch is not None and watch.is_out_of_patience(told.likenesses):
                    result = finish(step)
                    break
        assert result is not None  # a state is only kept before the last step
        result = replace(result, best_files=_offer_best(kept.take_candidate(), told, name, save))
        kept.save_result(result)
        kept.state_file.unlink(missing_ok=True)
        return result

    return within_memory(attempt, config, say)


def _look(watch: Watch, step: TrainStep, likeness: Likeness | None, told: Told, kept: Kept) -> None:
    """Looks at the run; what is seen goes to the disk, and the artifact too where it was never more alike."""
    look = watch.look(step.run, step.step, likeness)
    for folder, picture in ((kept.samples, look.composed), (kept.looks, look.sheet)):
        save_image(picture, folder / f"step-{step.step:06d}.png")
    if look.likeness is not None:
        told.looks.append([step.step, look.likeness])
        if best_look(told.likenesses) == len(told.looks) - 1:
            kept.keep_candidate(to_artifact(step.run, "candidate"))
    watch.on_look(look)


def _offer_best(best: Artifact | None, told: Told, name: str, save: Callable[[Artifact], list[Path]]) -> list[Path]:
    """The files of the most alike step, called NAME_best, where that was not the last one."""
    if best is None or best_look(told.likenesses) == len(told.looks) - 1:
        return []
    return save(replace(best, name=f"{name[: NAME_LENGTH - len(BEST)]}{BEST}"))


def check_weights(backbone: Backbone) -> None:
    """Raises MagiCaptureError for a checkpoint that holds NaN or infinity: every picture and loss would."""
    for part in ("unet", "text_encoder", "vae"):
        for name, weight in getattr(backbone, part).state_dict().items():
            if not weight.sum(dtype=torch.float32).isfinite():  # one pass, and no second tensor of its size
                raise MagiCaptureError(
                    f"the checkpoint's {part} holds numbers that are not finite, in {name}: get the file again, or "
                    "take another"
                )


def within_memory(attempt: Callable[[TrainConfig], Result], config: TrainConfig, say: Callable[[str], None]) -> Result:
    """attempt(config); where memory runs out, once more with checkpointing and half the pictures in a pass.

    Raises MagiCaptureError with the remedy when it runs out again, or when there is nothing left to save.
    """
    less = config.model_copy(update={"gradient_checkpointing": True, "batch_size": max(config.batch_size // 2, 1)})
    try:
        return attempt(config)
    except torch.OutOfMemoryError:
        pass  # gone on below: in here the traceback would hold on to the memory of the failed step
    if less != config:
        say(RETRY.format(batch_size=less.batch_size))
        with suppress(torch.OutOfMemoryError):
            return attempt(less)
    raise MagiCaptureError(OUT_OF_MEMORY.format(batch_size=less.batch_size))


def _kept_at_a_fault(steps: Iterable[TrainStep], keep: Callable[[TrainStep], None]) -> Iterator[TrainStep]:
    """The same steps; when one fails, for want of memory or by a loss that is none, the state before it is kept.

    It can be: nothing moves before all of a step's passes are done and their losses are known.
    """
    step = None
    try:
        for step in steps:
            yield step
    except (torch.OutOfMemoryError, MagiCaptureError):
        if step is not None:
            keep(step)
        raise


def resolve_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a graphics card that computes in it, else fp32."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    return (
        torch.bfloat16
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else torch.float32
    )


def to_artifact(run: Run, name: str) -> Artifact:
    """The live run as the file will hold it."""
    layers = run.lora()
    return Artifact(
        name=name,
        architecture=run.backbone.architecture,
        tokens=tuple(run.tokens()),
        lora=kohya.to_kohya(kohya.UNET, layers["unet"]) | kohya.to_kohya(kohya.TEXT_ENCODER, layers["text_encoder"]),
        config=run.config.model_dump(mode="json"),
        templates={task: list(templates) for task, templates in TEMPLATES.items()},
        rank_split=run.config.lora.rank_split if layers["unet"] else {},
    )
