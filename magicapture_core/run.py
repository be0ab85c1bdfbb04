"""What every training has, whatever it learns: parameters by name, an optimizer, a state, steps that can be resumed.

In: a run that says what its phases move and what a pass costs. Out: one `TrainStep` an optimizer step. Knows nothing of
files, nor of any method.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from . import optimizers
from .config import OptimizerName
from .crew import ALONE, Crew
from .objective import Terms
from .sampler import sample
from .tokens import Vocabulary
from .types import LossTerms, MagiCaptureError

if TYPE_CHECKING:
    from .backbone import Backbone

State = dict[str, Tensor]
OPTIMIZER = "optimizer."  # before its part of a state


class RunConfig(Protocol):
    """What the settings of every method hold."""

    @property
    def seed(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def gradient_checkpointing(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def optimizer(self) -> OptimizerName: ...

    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...
    def model_dump_json(self, *, exclude: set[str]) -> str: ...


class Batch(Protocol):
    """Items of one forward pass. timesteps: [B]."""

    @property
    def timesteps(self) -> Tensor: ...


class Objective(Protocol):
    """The terms of a batch, each item's, to be backpropagated inside the block."""

    def terms(self, batch: Any, weights: Terms[float]) -> AbstractContextManager[Terms[Tensor]]: ...


AnyRun = TypeVar("AnyRun", bound="TrainingRun")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainStep(Generic[AnyRun]):
    """One finished optimizer step. `step` counts 1..num_steps over all phases; `seconds` is its own time.

    `run` is live: it is as after this step until the generator goes on.
    """

    phase: str
    step: int
    num_steps: int
    losses: LossTerms
    seconds: float
    run: AnyRun

    @property
    def attention_share(self) -> float:
        """The weighed attention loss beside the reconstruction: too small it does nothing, too large it does all."""
        return self.run.weights(self.phase).attention * self.losses.attention / self.losses.reconstruction

    def state(self) -> State:
        """Copies of all that `advance` needs to go on exactly from here."""
        return {"step": torch.tensor(self.step), **self.run.state()}


def advance(run: AnyRun, resume: State | None = None) -> Generator[TrainStep[AnyRun]]:
    """The steps of all phases in order; with a `TrainStep.state()` those after it, bit for bit as if it had never
    stopped.

    Raises MagiCaptureError when a loss or a gradient is not a number; nothing has moved in that step then.
    """
    done, saved = int(resume["step"]) if resume else 0, resume or {}
    for phase, num_steps in run.phases.items():
        first = run.steps_before(phase)
        if done < first + num_steps:
            run.begin(phase, saved, midway=done > first)
            saved = {}
            for step in range(max(done - first, 0), num_steps):
                started = time.perf_counter()
                losses = run.update(phase, step, fraction_left=1 - step / num_steps)
                yield TrainStep(
                    phase=phase,
                    step=first + step + 1,
                    num_steps=sum(run.phases.values()),
                    losses=losses,
                    seconds=time.perf_counter() - started,
                    run=run,
                )


def go_back_to(run: TrainingRun, state: State) -> None:
    """A fresh run becomes what it was when it left the state, to be looked at."""
    step = int(state["step"])
    phase = next(phase for phase, n in run.phases.items() if step <= run.steps_before(phase) + n)
    run.begin(phase, state, midway=True)


@contextmanager
def checkpointed(unet: Any, is_wanted: bool) -> Iterator[None]:
    """Inside the block the UNet computes its activations twice, where that is wanted, instead of keeping them."""
    if not is_wanted:
        yield
        return
    unet.enable_gradient_checkpointing()  # diffusers' is non-reentrant: maps read inside keep their gradient
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


class TrainingRun(ABC):
    """The moving parts of a training: parameters by name, and the optimizer of the present phase.

    A method's own run puts the parameters of a phase in place (`begin`, which ends in `optimize`), says of which items
    a step consists and how much each term weighs. phases: by name, in order, how many steps each has.
    """

    config: RunConfig
    phases: Mapping[str, int]
    vocabulary: Vocabulary
    objective: Objective
    crew: Crew = ALONE  # the processes that share the items of a step

    def __init__(self, backbone: Backbone, config: RunConfig) -> None:
        self.backbone, self.config = backbone, config
        self.device: torch.device = backbone.unet.device
        self._parameters: dict[str, nn.Parameter] = {}
        self._is_half = backbone.unet.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._is_half)

    # -- what a method adds --------------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, phase: str, resume: State, midway: bool) -> None:
        """Put the trainable parts of a phase in place. midway: the optimizer goes on from `resume`."""

    @abstractmethod
    def items(self, phase: str, step: int) -> Sequence[Any]:
        """The addresses of what one optimizer step learns from."""

    @abstractmethod
    def draw(self, items: Sequence[Any]) -> Batch:
        """Those of one forward pass, drawn."""

    @abstractmethod
    def weights(self, phase: str) -> Terms[float]:
        """How much each term weighs in a phase."""

    def num_identity(self, batch: Any) -> int:
        """How many items of a batch are asked for a likeness."""
        return 0

    def moved(self, phase: str, fraction_left: float) -> None:  # noqa: B027
        """Called after the optimizer has moved; most methods have nothing to add."""

    # -- what was learned ----------------------------------------------------------------------------------------------

    def preview(self, prompt: str, **options: Any) -> Tensor:
        """Pictures from the weights as they are now, [B,3,H,W] in 0..1; options as for `sampler.sample`."""
        return sample(self.backbone, self.vocabulary, prompt, **options)

    def state(self) -> State:
        """Parameters, optimizer and loss scale as flat copies on the CPU."""
        state: State = {}
        for name, parameter in self._parameters.items():
            state[f"parameter.{name}"] = parameter.detach()
        for key, value in optimizers.state(self._optimizer, self._parameters).items():
            state[f"{OPTIMIZER}{key}"] = value
        for key, value in self._scaler.state_dict().items():
            state[f"scaler.{key}"] = torch.tensor(value)
        return {key: value.to("cpu", copy=True) for key, value in state.items()}

    # -- phases --------------------------------------------------------------------------------------------------------

    def steps_before(self, phase: str) -> int:
        """Of the phases that come first."""
        names = [*self.phases]
        return sum(self.phases[name] for name in names[: names.index(phase)])

    def optimize(self, groups: list[dict[str, Any]], weight_decay: float, resume: State, midway: bool) -> None:
        """A new optimizer, as `optimizers.build` wants its groups; all that moves, and how, taken from `resume`."""
        for name, parameter in self._parameters.items():
            if f"parameter.{name}" in resume:
                parameter.data.copy_(resume[f"parameter.{name}"])
        self._optimizer = optimizers.build(self.config.optimizer, groups, weight_decay)
        if midway:
            memory = {key.removeprefix(OPTIMIZER): v for key, v in resume.items() if key.startswith(OPTIMIZER)}
            optimizers.load(self._optimizer, self._parameters, memory)
        if saved := {key.removeprefix("scaler."): v.item() for key, v in resume.items() if key.startswith("scaler.")}:
            self._scaler.load_state_dict(saved)

    @property
    def dearest_phase(self) -> str:
        """The one whose passes take most time and memory: the last, unless a method knows better."""
        return [*self.phases][-1]

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the present phase moves."""
        groups = self._optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]

    # -- one step ------------------------------------------------------------------------------------------------------

    def update(self, phase: str, step: int, fraction_left: float) -> LossTerms:
        """One optimizer step over the step's items, learning rates at `fraction_left` of their start (linear decay).

        What a step has to say is read off the device once, before anything moves.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * fraction_left
        items = self.items(phase, step)
        with self.crew.together():
            sums = self._gradients(items, phase)
        self.crew.add_up(sums, self.trainable())
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.trainable(), self.config.max_grad_norm)
        *read, num_identity, length = torch.cat([sums, norm[None]]).tolist()
        means = Terms(*read)
        total = means.weighed(self.weights(phase))
        self._check_numbers(phase, step, total, length)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if math.isfinite(length):
            self.moved(phase, fraction_left)
        return LossTerms(**means._asdict(), total=total, num_identity=round(num_identity))

    def _gradients(self, items: Sequence[Any], phase: str) -> Tensor:
        """Those of this process's share of the items, each weighing the same -> the terms' sums, and how many items
        were asked for a likeness."""
        mine, size = self.crew.share(items), self.config.batch_size
        sums, num_identity = torch.zeros(len(Terms._fields), device=self.device), 0
        for start in range(0, len(mine), size):
            batch = self.draw(mine[start : start + size])
            sums += self.backward(batch, phase, share=1 / len(items))
            num_identity += self.num_identity(batch)
        return torch.cat([sums, sums.new_tensor([num_identity])])

    def backward(self, batch: Batch, phase: str, share: float) -> Tensor:
        """Add the gradient of one forward pass, each item weighing `share`. Returns the terms, each its weighed sum."""
        weights = self.weights(phase)
        with self.objective.terms(batch, weights) as terms:
            self._scaler.scale(terms.weighed(weights).sum() * share).backward()
        return torch.stack([term.detach().sum() for term in terms]) * share

    def _check_numbers(self, phase: str, step: int, total: float, gradient: float) -> None:
        """In fp16 a gradient may overflow: the scaler passes over such a step, at a lower scale from then on.

        Where that has not helped down to a scale of 1, it is no overflow.
        """
        if math.isfinite(total) and (math.isfinite(gradient) or (self._is_half and self._scaler.get_scale() > 1)):
            return
        what = "gradient" if math.isfinite(total) else "loss"
        remedy = "fp16 overflows here, take dtype bf16 or fp32" if self._is_half else "lower the learning rates"
        number = self.steps_before(phase) + step + 1
        raise MagiCaptureError(f"the {what} is not a number at step {number}, which changed nothing: {remedy}")
