"""The whole line on one page: portraits in, a shareable LoRA out, and a state on the disk in between.

`personalize` is what the terminal and the node both call; the caller owns progress, previews and the decision to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import kohya
from .artifact import NAME_LENGTH, Artifact, check_name
from .class_images import class_images
from .config import TrainConfig
from .dataset import Dataset, check_kind, check_photos, encode, step_items, with_classes
from .dino import Dino
from .estimate import Estimate, estimate
from .identity import Likeness, Recogniser
from .images import save_image
from .kept import Kept, Result, Told, result_key
from .memory import is_out_of_memory
from .prompts import templates
from .sharing import add_preview
from .trainer import DTYPES, Run, TrainStep, open_run, reopened, train
from .types import MagiCaptureError, Photos
from .watch import Watch

if TYPE_CHECKING:
    from .backbone import Backbone

STATE_EVERY = 100  # steps between two states on the disk
OUT_OF_MEMORY = (
    "out of memory, with gradient_checkpointing and batch_size 1 too: close what else uses it and resume at the last "
    "step; or train anew with a smaller resolution or lora_rank"
)
CANDIDATE = "candidate"
BEST = "_best"  # behind the name


def personalize(
    backbone: Backbone,
    photos: Photos,
    config: TrainConfig,
    *,
    name: str,
    folder: Path,
    save: Callable[[Artifact], list[Path]],
    key: str = "",
    recogniser: Recogniser | Dino | None = None,
    device: torch.device | str = "cpu",
    resume: bool = True,
    on_estimate: Callable[[Estimate], None] = lambda estimate: None,
    on_step: Callable[[TrainStep], None] = lambda step: None,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Encode, invert, tune, save. The backbone is moved to the device and the configuration's precision.

    folder: keeps the state and the result of this name. save: puts the artifact where it belongs, returns its files.
    key: the `result_key` of these inputs, from a caller who has it: computing it reads every weight. recogniser: of
    faces, or DINO for an object.
    on_step may look at the live run, and raise whatever it likes to stop: the state is then on the disk, as it is when
    a loss is not a number, and the next call with the same inputs and `resume` goes on from it, bit for bit. Where
    memory runs out, the same run goes on by itself with less of it, which `say` tells. watch: when the run is looked
    at; the pictures lie in `Kept.samples` and `Kept.looks`, and the most alike step of phase 2 is saved as NAME_best.
    """
    check_name(name)
    if not config.inversion.num_steps + config.tuning.num_steps:
        raise MagiCaptureError("nothing to train: inversion.num_steps and tuning.num_steps are both 0")
    check_photos(photos, config)
    check_kind(config, recogniser)
    if watch is not None:
        check_patience(watch, config, recogniser)
    if recogniser is not None and config.loss.identity_decoder == "taesd" and backbone.taesd is None:
        raise MagiCaptureError("loss.identity_decoder taesd: there is no TAESD; give its file (--taesd), or take vae")
    key = key or result_key(backbone, photos, config, recogniser, watch)
    check_weights(backbone)
    backbone.to(torch.device(device), resolve_dtype(config, torch.device(device)))
    kept = Kept(folder, key)
    if not resume:
        kept.drop_work()

    def attempt(config: TrainConfig) -> Result:
        dataset = encode(backbone, photos, config, recogniser)
        if config.tuning.class_images:
            check_start(backbone, dataset, config)
            say(f"makes {config.tuning.class_images} pictures of the class first, those that are not there yet")
            on_sampling = watch.on_sampling if watch else lambda step, num_steps: None
            classes = class_images(backbone, config, kept.classes(backbone, config), on_sampling)
            dataset = with_classes(dataset, backbone, classes, config)
        on_estimate(estimate(backbone, dataset, config))
        state, told = kept.load_state()
        looking = Looking(watch=watch, likeness=dataset.likeness, config=config, told=told, kept=kept, say=say)
        resumed_from, result = len(told.history), None

        def keep(step: TrainStep) -> None:
            kept.save_state(step.state(), told)

        def finish(run: Run) -> Result:
            finished = Result(key=key, files=save(to_artifact(run, name)), told=told, resumed_from=resumed_from)
            kept.save_result(finished)
            return finished

        if looking.was_cut_off(resumed_from):
            with reopened(backbone, dataset, config, state) as run:
                looking.look(run, resumed_from)
                if looking.is_over:
                    return conclude(finish(run), kept, save, say)
        with closing(train(backbone, dataset, config, state)) as steps:
            for step in _kept_at_a_fault(steps, keep):
                told.add(step.losses)
                if step.step == step.num_steps:  # kept before anyone can say stop
                    result = finish(step.run)
                try:
                    looking.look(step.run, step.step)
                    on_step(step)
                    if result is None and looking.is_over:
                        result = finish(step.run)
                except BaseException:  # the host's own way to say stop may be none of Exception's
                    if result is None:
                        keep(step)
                    else:
                        conclude(result, kept, save, say)
                    raise
                if result is not None:
                    break
                if step.step % STATE_EVERY == 0:
                    keep(step)
        assert result is not None  # a state is only kept before the last step
        return conclude(result, kept, save, say)

    return within_memory(attempt, config, say)


@dataclass(frozen=True, kw_only=True, eq=False)
class Looking:
    """A watch at work: what it sees goes to the disk, and of phase 2 into what the run tells. None looks at nothing."""

    watch: Watch | None
    likeness: Likeness | None
    config: TrainConfig
    told: Told
    kept: Kept
    say: Callable[[str], None]

    def look(self, run: Run, step: int) -> None:
        """Where a look is due. One that fails is told, and the training goes on."""
        if self.watch is None or not self.watch.is_due(step, self.config.num_steps):
            return
        try:
            look = self.watch.look(run, step, self.likeness)
        except (RuntimeError, MemoryError, MagiCaptureError) as error:
            if not (isinstance(error, MagiCaptureError) or is_out_of_memory(error)):
                raise
            self.say(f"no sample pictures after step {step}: {str(error).splitlines()[0]}")
            return
        save_image(look.composed, self.kept.sample(step), "generated")
        save_image(look.sheet, self.kept.looks / self.kept.sample(step).name, "generated")
        if look.likeness is not None and step > self.config.inversion.num_steps:
            self.told.looks.append([step, look.likeness])
            if self.told.best == step:
                self.kept.keep_candidate(step, to_artifact(run, CANDIDATE))
        self.told.looked_at = step
        self.watch.on_look(look)

    def was_cut_off(self, step: int) -> bool:
        """Whether the run stopped after this step before its look was done, or before anyone saw that it was over."""
        is_missing = (
            self.watch is not None and self.watch.is_due(step, self.config.num_steps) and step > self.told.looked_at
        )
        return step > 0 and (is_missing or self.is_over)

    @property
    def is_over(self) -> bool:
        return self.watch is not None and self.watch.is_out_of_patience(self.told.likenesses)


def conclude(result: Result, kept: Kept, save: Callable[[Artifact], list[Path]], say: Callable[[str], None]) -> Result:
    """The most alike step is saved as NAME_best, where that was not the last look; each file gets its sample as a
    preview, or it is told why not; what the run needed goes."""
    told = result.told
    if told.best is not None and told.best != told.looks[-1][0] and (best := kept.find_candidate(told.best)):
        name = result.files[0].stem[: NAME_LENGTH - len(BEST)] + BEST
        result = replace(result, best_files=save(replace(best, name=name)))
        kept.save_result(result)
    samples = [(result.files[0], kept.last_sample)]
    if result.best_files and told.best is not None:
        samples.append((result.best_files[0], kept.sample(told.best)))
    for lora, sample in samples:
        try:
            add_preview(lora, sample)
        except OSError as error:  # the disk is full, or the picture open elsewhere: the training is saved all the same
            say(f"no preview beside {lora.name}: {error}")
    kept.drop_work()
    return result


def check_patience(watch: Watch, config: TrainConfig, recogniser: Recogniser | Dino | None) -> None:
    """Raises MagiCaptureError for a patience that nothing could ever tell to be at its end."""
    if watch.patience and config.kind == "object":
        raise MagiCaptureError("patience: the likeness of an object is not told; set it to 0")
    if watch.patience and (recogniser is None or watch.detector is None or not watch.every):
        raise MagiCaptureError(
            "patience: nobody could tell the likeness; give a face recogniser, the face networks, and sample pictures "
            "every so many steps, or set it to 0"
        )


def check_start(backbone: Backbone, dataset: Dataset, config: TrainConfig) -> None:
    """Raises MagiCaptureError for what would end a run at its first step: a word, an optimizer that is not there."""
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)


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
    """attempt(config); each time memory runs out, once more with checkpointing and half as many items in a pass.

    Raises MagiCaptureError with the remedy when there is nothing left to save.
    """
    most = max(len(step_items(config, phase, 0)) for phase in ("inversion", "tuning"))
    batch_size = min(config.batch_size, most)  # there are no more in a step
    while True:
        try:
            return attempt(config)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # gone on below: in here the traceback would hold on to the memory of the failed step
        if config.gradient_checkpointing and batch_size == 1:
            raise MagiCaptureError(OUT_OF_MEMORY)
        batch_size = max(batch_size // 2, 1)
        config = config.model_copy(update={"gradient_checkpointing": True, "batch_size": batch_size})
        say(f"out of memory: goes on with gradient_checkpointing and batch_size {batch_size}; the LoRA is the same")


def _kept_at_a_fault(steps: Iterable[TrainStep], keep: Callable[[TrainStep], None]) -> Iterator[TrainStep]:
    """The same steps; when one fails, for want of memory or by a loss that is none, the state before it is kept.

    It can be: nothing moves before all of a step's passes are done and their losses are known.
    """
    step = None
    try:
        for step in steps:
            yield step
    except (RuntimeError, MemoryError, MagiCaptureError) as error:
        if step is not None and (isinstance(error, MagiCaptureError) or is_out_of_memory(error)):
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
        templates={task: list(texts) for task, texts in templates(run.config.noun()).items()},
        rank_split=run.config.lora.rank_split if layers["unet"] else {},
    )
