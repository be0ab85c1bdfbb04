"""A training from its first step to its files, whatever it learns, with a state on the disk in between.

In: a method, which says what it learns and how, and the place of what a run keeps. Out: a `Result`. The caller owns
progress, previews and the decision to stop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import torch

from .artifact import NAME_LENGTH, check_name
from .crew import ALONE, Crew
from .estimate import Estimate, estimate
from .images import save_image
from .kept import Kept, Result, Told
from .memory import is_out_of_memory
from .run import AnyRun, RunConfig, State, TrainStep, advance, go_back_to
from .sharing import add_preview
from .types import Dismissed, MagiCaptureError
from .watch import Look, Watch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from .backbone import Backbone

STATE_EVERY = 100  # steps between two states on the disk
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CANDIDATE = "candidate"
BEST = "_best"  # behind the name

Made = TypeVar("Made", bound="DataclassInstance")  # what a run leaves behind; it has a name
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class Method(ABC, Generic[AnyRun, Made]):
    """What one way of personalising a model has of its own; `fit` has the rest.

    backbone: where `fit` puts it, before anything is asked of the method.
    """

    backbone: Backbone
    config: Any  # RunConfig, the method's own

    @property
    @abstractmethod
    def most_items(self) -> int:
        """In one step: more do not fit into a pass."""

    @property
    @abstractmethod
    def scored_after(self) -> int:
        """Looks after this step are compared with one another."""

    @property
    @abstractmethod
    def smaller(self) -> str:
        """What could be smaller where memory does not suffice."""

    @abstractmethod
    def prepare(self) -> Callable[[], AbstractContextManager[AnyRun]]:
        """Encodes all that is given -> what opens a fresh run, whose changes to the backbone are undone on leaving."""

    @abstractmethod
    def look(self, run: AnyRun, watch: Watch, step: int) -> Look:
        """What the run shows after a step."""

    @abstractmethod
    def made(self, run: AnyRun, name: str) -> Made:
        """What the live run has learned, as a file will hold it."""

    @abstractmethod
    def save(self, made: Made, folder: Path) -> object:
        """Into files of its own."""

    @abstractmethod
    def load(self, file: Path) -> Made:
        """From the main one of them. Raises MagiCaptureError for one that is not whole."""


def fit(
    method: Method[AnyRun, Made],
    kept: Kept,
    *,
    name: str,
    save: Callable[[Made], list[Path]],
    device: torch.device | str,
    resume: bool,
    on_estimate: Callable[[Estimate], None],
    on_step: Callable[[TrainStep[AnyRun]], None],
    watch: Watch | None,
    say: Callable[[str], None],
    crew: Crew = ALONE,
) -> Result:
    """Prepare, train, look, save; with `resume` a finished training of the same inputs is returned as it is. The
    backbone is moved to the device and the configuration's precision.

    save: puts what was made where it belongs, returns its files, the main one first. on_step may look at the live run,
    and raise whatever it likes to stop: the state is then on the disk, as it is when a loss is not a number, and the
    next call with the same inputs and `resume` goes on from it, bit for bit. Where memory runs out, the same run goes
    on by itself with less of it, which `say` tells. watch: when the run is looked at; the pictures lie in
    `Kept.samples` and `Kept.looks`, and the most alike scored step is saved as NAME_best. crew: of several processes,
    each calls this with the same inputs; the first returns the result, and the others raise Dismissed.
    """
    check_name(name)

    def attempt(config: RunConfig) -> Result:
        fitted = replace(method, config=config)
        with crew.together(), crew.first_before_others():
            opened = partial(manned, fitted.prepare(), crew)
        state, told = kept.load_state()
        crew.check_alike(len(told.history))
        with crew.together():
            expected = estimate(opened()) if crew.is_first else None
        if expected is None:
            follow(opened, state, crew)
        on_estimate(expected)
        looking = Looking(method=fitted, watch=watch, told=told, kept=kept, say=say)
        resumed_from = len(told.history)

        def keep(step: TrainStep[AnyRun]) -> None:
            kept.save_state(step.state(), told)

        def finish(run: AnyRun) -> Result:
            finished = Result(key=kept.key, files=save(method.made(run, name)), told=told, resumed_from=resumed_from)
            kept.save_result(finished)
            return conclude(finished, kept, method.load, save, say)

        if looking.was_cut_off(resumed_from):
            with opened() as run:
                go_back_to(run, state)
                looking.look(run, resumed_from)
                if looking.is_over(resumed_from):
                    crew.dismiss()
                    return finish(run)
        with opened() as run, closing(crew.led(advance(run, state))) as steps:
            for step in _kept_at_a_fault(steps, keep):
                told.add(step.losses)
                is_last = step.step == step.num_steps
                try:
                    if is_last or step.step % STATE_EVERY == 0:
                        keep(step)
                    looking.look(run, step.step)
                    on_step(step)
                except BaseException:  # the host's own way to say stop may be none of Exception's
                    if is_last:
                        finish(run)
                    else:
                        keep(step)
                    raise
                if looking.is_over(step.step):
                    keep(step)  # with its look: the files may find no place
                    return finish(run)
        raise AssertionError("a state of the last step is over")

    with kept.locked() if crew.is_first else nullcontext():
        finished = kept.find_result() if resume else None
        crew.check_alike(int(finished is not None))
        if finished and not crew.is_first:
            raise Dismissed
        if finished:
            say("Nothing has changed since the last training: its result is returned.")
            finished = replace(finished, resumed_from=len(finished.told.history))
            return conclude(finished, kept, method.load, save, say)  # where a kill left that to do
        if not resume and crew.is_first:
            kept.drop_work()
        check_weights(method.backbone)
        method.backbone.to(torch.device(device), resolve_dtype(method.config, torch.device(device)))
        return within_memory(attempt, method.config, method.most_items, method.smaller, say)


def follow(opened: Callable[[], AbstractContextManager[AnyRun]], state: State, crew: Crew) -> NoReturn:
    """A training in all processes but the first: its steps, and nothing else. Raises Dismissed when it is over."""
    with opened() as run, closing(advance(run, state)) as steps:
        crew.follow(steps)


@contextmanager
def manned(opened: Callable[[], AbstractContextManager[AnyRun]], crew: Crew) -> Iterator[AnyRun]:
    """A fresh run whose steps this crew does."""
    with opened() as run:
        run.crew = crew
        yield run


@dataclass(frozen=True, kw_only=True, eq=False)
class Looking(Generic[AnyRun, Made]):
    """A watch at work: what it sees goes to the disk, and what is scored into what the run tells. None looks at
    nothing."""

    method: Method[AnyRun, Made]
    watch: Watch | None
    told: Told
    kept: Kept
    say: Callable[[str], None]

    def look(self, run: AnyRun, step: int) -> None:
        """Where a look is due and not done. One that fails is told, and the training goes on."""
        if self.watch is None or not self.is_due(step):
            return
        try:
            look = self.method.look(run, self.watch, step)
        except (RuntimeError, MemoryError, MagiCaptureError) as error:
            if not (isinstance(error, MagiCaptureError) or is_out_of_memory(error)):
                raise
            self.say(f"no sample pictures after step {step}: {str(error).splitlines()[0]}")
            return
        save_image(look.sample, self.kept.sample(step), "generated")
        save_image(look.sheet, self.kept.looks / self.kept.sample(step).name, "generated")
        if look.likeness is not None and step > self.method.scored_after:
            self.told.looks.append([step, look.likeness])
            if self.told.best == step:
                candidate = self.method.made(run, CANDIDATE)
                self.kept.keep_candidate(step, lambda folder: self.method.save(candidate, folder))
        self.told.looked_at = step
        self.watch.on_look(look)

    def was_cut_off(self, step: int) -> bool:
        """Whether the run stopped after this step before its look was done, or before it could end as one that is
        over."""
        return step > 0 and (self.is_due(step) or self.is_over(step))

    def is_due(self, step: int) -> bool:
        is_its_turn = self.watch is not None and self.watch.is_due(step, self.method.config.num_steps)
        return is_its_turn and step > self.told.looked_at

    def is_over(self, step: int) -> bool:
        """After the last step, whose state is kept where its files could not be written, and at the end of patience."""
        is_last = step == self.method.config.num_steps
        return is_last or (self.watch is not None and self.watch.is_out_of_patience(self.told.likenesses))


def conclude(
    result: Result,
    kept: Kept,
    load: Callable[[Path], Made],
    save: Callable[[Made], list[Path]],
    say: Callable[[str], None],
) -> Result:
    """The most alike step is saved as NAME_best, where that was not the last; each file gets its sample as a
    preview, or it is told why not; what the run needed goes."""
    told = result.told
    if told.best is not None and told.best != len(told.history) and (best := kept.find_candidate(told.best, load)):
        name = result.files[0].stem[: NAME_LENGTH - len(BEST)] + BEST
        result = replace(result, best_files=save(replace(best, name=name)))
        kept.save_result(result)
    samples = [(result.files[0], kept.last_sample)]
    if result.best_files and told.best is not None:
        samples.append((result.best_files[0], kept.sample(told.best)))
    for file, sample in samples:
        try:
            add_preview(file, sample)
        except OSError as error:  # the disk is full, or the picture open elsewhere: the training is saved all the same
            say(f"no preview beside {file.name}: {error}")
    kept.drop_work()
    return result


def check_weights(backbone: Backbone) -> None:
    """Raises MagiCaptureError for a checkpoint that holds NaN or infinity: every picture and loss would."""
    for part in ("unet", "text_encoder", "vae"):
        for name, weight in getattr(backbone, part).state_dict().items():
            if not weight.sum(dtype=torch.float32).isfinite():  # one pass, and no second tensor of its size
                raise MagiCaptureError(
                    f"the checkpoint's {part} holds numbers that are not finite, in {name}: get the file again, or "
                    "take another"
                )


def within_memory(
    attempt: Callable[[AnyConfig], Result],
    config: AnyConfig,
    most_items: int,
    smaller: str,
    say: Callable[[str], None],
) -> Result:
    """attempt(config); each time memory runs out, once more with checkpointing and half as many items in a pass, of the
    most there are in a step.

    Raises MagiCaptureError with the remedy when there is nothing left to save.
    """
    batch_size = min(config.batch_size, most_items)
    while True:
        try:
            return attempt(config)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # gone on below: in here the traceback would hold on to the memory of the failed step
        if config.gradient_checkpointing and batch_size == 1:
            raise MagiCaptureError(
                "out of memory, with gradient_checkpointing and batch_size 1 too: close what else uses it and resume "
                f"at the last step; or train anew with a smaller {smaller}"
            )
        batch_size = max(batch_size // 2, 1)
        config = config.model_copy(update={"gradient_checkpointing": True, "batch_size": batch_size})
        say(f"out of memory: goes on with gradient_checkpointing and batch_size {batch_size}; the result is the same")


def _kept_at_a_fault(
    steps: Iterable[TrainStep[AnyRun]], keep: Callable[[TrainStep[AnyRun]], None]
) -> Iterator[TrainStep[AnyRun]]:
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


def resolve_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """See `fast_dtype` for `auto`."""
    return fast_dtype(device) if config.dtype == "auto" else DTYPES[config.dtype]


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a graphics card that computes in it, else fp32."""
    is_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_bf16 else torch.float32
