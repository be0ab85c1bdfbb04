"""Training as a generator: textual inversion, then LoRA and words together. The caller owns progress and stopping.

In: a backbone, an encoded dataset, a configuration. Out: one `TrainStep` an optimizer step. Closing the generator, at
any step, leaves the backbone's modules as they were. Knows nothing of files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from . import lora, optimizers, tokens
from .config import TrainConfig
from .dataset import Batch, Dataset, step_items
from .losses import AttentionLoss
from .objective import Objective, Terms
from .sampler import sample
from .tokens import Vocabulary
from .types import LossTerms, MagiCaptureError, Token

if TYPE_CHECKING:
    from .backbone import Backbone

Phase = Literal["inversion", "tuning"]
State = dict[str, Tensor]
OPTIMIZER = "optimizer."  # before its part of a state
NORM_PULL = 100  # times the learning rate, of the authors' code
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainStep:
    """One finished optimizer step. `step` counts 1..num_steps over both phases; `seconds` is its own time.

    `run` is live: it is as after this step until the generator goes on.
    """

    phase: Phase
    step: int
    num_steps: int
    losses: LossTerms
    seconds: float
    run: Run

    def state(self) -> State:
        """Copies of all that `train(..., resume=...)` needs to go on exactly from here."""
        return {"step": torch.tensor(self.step), **self.run.state()}


def train(
    backbone: Backbone,
    dataset: Dataset,
    config: TrainConfig,
    resume: State | None = None,
    attention_loss: AttentionLoss | None = None,
) -> Generator[TrainStep]:
    """Phase 1 moves the learned words alone (Eq. 9), phase 2 the LoRA and the words (Eq. 10).

    resume: a `TrainStep.state()` of the same photos and configuration; the run goes on bit for bit as if it had never
    stopped. attention_loss: instead of the configuration's attention refocusing, under the same weight; None for
    that. Raises MagiCaptureError when a loss or a gradient is not a number; nothing has moved in that step then.
    """
    done = int(resume["step"]) if resume else 0
    phases: dict[Phase, int] = {"inversion": config.inversion.num_steps, "tuning": config.tuning.num_steps}
    with open_run(backbone, dataset, config, attention_loss) as run:
        first, saved = 0, resume or {}
        for phase, num_steps in phases.items():
            if done < first + num_steps:
                run.begin(phase, saved, midway=done > first)
                saved = {}
                for step in range(max(done - first, 0), num_steps):
                    started = time.perf_counter()
                    losses = run.update(phase, step, fraction_left=1 - step / num_steps)
                    yield TrainStep(
                        phase=phase,
                        step=first + step + 1,
                        num_steps=sum(phases.values()),
                        losses=losses,
                        seconds=time.perf_counter() - started,
                        run=run,
                    )
            first += num_steps


@contextmanager
def reopened(backbone: Backbone, dataset: Dataset, config: TrainConfig, state: State) -> Iterator[Run]:
    """The run as it was when it left the state, to be looked at."""
    with open_run(backbone, dataset, config) as run:
        phase: Phase = "inversion" if int(state["step"]) <= config.inversion.num_steps else "tuning"
        run.begin(phase, state, midway=True)
        yield run


@contextmanager
def open_run(
    backbone: Backbone, dataset: Dataset, config: TrainConfig, attention_loss: AttentionLoss | None = None
) -> Iterator[Run]:
    """A run whose changes to the backbone's modules are undone on leaving."""
    with ExitStack() as undo:
        if config.gradient_checkpointing:  # diffusers' is non-reentrant: maps read inside keep their gradient
            backbone.unet.enable_gradient_checkpointing()
            undo.callback(backbone.unet.disable_gradient_checkpointing)
        yield Run(backbone, dataset, config, undo, attention_loss)


class Run:
    """The moving parts of a training: the learned words' rows, the LoRA, the optimizer of the present phase."""

    def __init__(
        self,
        backbone: Backbone,
        dataset: Dataset,
        config: TrainConfig,
        undo: ExitStack,
        attention_loss: AttentionLoss | None = None,
    ) -> None:
        self.backbone, self.dataset, self.config = backbone, dataset, config
        self._undo = undo
        self._generator = torch.Generator().manual_seed(config.seed)
        table = backbone.text_encoder.get_input_embeddings().weight
        self._mean_norm = table.detach().float().norm(dim=1).mean()
        self._initial = tokens.initial_tokens(config.concepts, backbone.tokenizer, table, self._generator)
        rows = undo.enter_context(tokens.injected(backbone.text_encoder, self._initial))
        self._parameters = {f"token.{index}": row for index, row in enumerate(rows)}
        self.vocabulary = Vocabulary.of(backbone.tokenizer, self._initial)
        recogniser = dataset.likeness.recogniser if dataset.likeness else None
        ranks = list(config.lora.rank_split.values())
        self.objective = Objective(backbone, config.loss, self.vocabulary, recogniser, ranks, attention_loss)
        device = self.objective.device.type
        self._scaler = torch.amp.GradScaler(device, enabled=backbone.unet.dtype == torch.float16)

    # -- what was learned ----------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """The learned words as they are now, copied to the CPU."""
        return [
            replace(token, vectors=self._parameters[f"token.{index}"].detach().float().cpu().clone())
            for index, token in enumerate(self._initial)
        ]

    def lora(self) -> dict[str, lora.State]:
        """The LoRA of each model as it is now, copied to the CPU; empty in phase 1."""
        return {"unet": lora.state(self.backbone.unet), "text_encoder": lora.state(self.backbone.text_encoder)}

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

    def begin(self, phase: Phase, resume: State, midway: bool) -> None:
        """Put the trainable parts of a phase in place. midway: the optimizer goes on from `resume`."""
        settings = self.config.inversion if phase == "inversion" else self.config.tuning
        rows = [parameter for name, parameter in self._parameters.items() if name.startswith("token.")]
        groups = [{"params": rows, "base": settings.token_learning_rate}]
        if phase == "tuning":
            groups.append({"params": self._inject_lora(), "base": self.config.tuning.lora_learning_rate})
        for row in rows:  # after the injection: peft freezes all that is not its own
            row.requires_grad_(settings.token_learning_rate > 0)
        for name, parameter in self._parameters.items():
            if f"parameter.{name}" in resume:
                parameter.data.copy_(resume[f"parameter.{name}"])
        self._optimizer = optimizers.build(self.config.optimizer, groups, settings.weight_decay)
        text_moves = settings.token_learning_rate > 0 or (phase == "tuning" and self.config.lora.text_encoder)
        self.objective.remember_text(not text_moves)
        if midway:
            memory = {key.removeprefix(OPTIMIZER): v for key, v in resume.items() if key.startswith(OPTIMIZER)}
            optimizers.load(self._optimizer, self._parameters, memory)
        if saved := {key.removeprefix("scaler."): v.item() for key, v in resume.items() if key.startswith("scaler.")}:
            self._scaler.load_state_dict(saved)

    def _inject_lora(self) -> list[nn.Parameter]:
        settings, models = self.config.lora, [(self.backbone.unet, self.config.lora.targets)]
        num_parts = len(settings.rank_split) or 1
        if settings.text_encoder:
            models.append((self.backbone.text_encoder, "text-encoder"))
        parameters = []
        for model, target in models:
            parameters += self._undo.enter_context(lora.injected(model, settings, target, self._generator, num_parts))
        self._parameters |= {f"lora.{index}": parameter for index, parameter in enumerate(parameters)}
        return parameters

    # -- one step ------------------------------------------------------------------------------------------------------

    def update(self, phase: Phase, step: int, fraction_left: float) -> LossTerms:
        """One optimizer step over the step's items, learning rates at `fraction_left` of their start (linear decay).

        What a step has to say is read off the device once, before anything moves.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * fraction_left
        items = step_items(self.config, phase, step)
        sums = torch.zeros(len(Terms._fields), device=self.objective.device)
        num_identity = 0
        for start in range(0, len(items), self.config.batch_size):
            batch = self.dataset.draw(self.config, items[start : start + self.config.batch_size])
            sums += self.backward(batch, phase, share=1 / len(items))
            num_identity += len(batch.identity_items)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.trainable(), self.config.max_grad_norm)
        *read, length = torch.cat([sums, norm[None]]).tolist()
        means = Terms(*read)
        total = means.weighed(self.weights(phase))
        self._check_numbers(phase, step, total, length)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if phase == "inversion" and self.config.inversion.pull_norm and math.isfinite(length):
            self._pull_norms(rate=self.config.inversion.token_learning_rate * fraction_left)
        return LossTerms(**means._asdict(), total=total, num_identity=num_identity)

    def _check_numbers(self, phase: Phase, step: int, total: float, gradient: float) -> None:
        """In fp16 a gradient may overflow: the scaler passes over such a step, at a lower scale from then on.

        Where that has not helped down to a scale of 1, it is no overflow.
        """
        half = self.backbone.unet.dtype == torch.float16
        if math.isfinite(total) and (math.isfinite(gradient) or (half and self._scaler.get_scale() > 1)):
            return
        number = step + 1 + (self.config.inversion.num_steps if phase == "tuning" else 0)
        what = "gradient" if math.isfinite(total) else "loss"
        remedy = "fp16 overflows here, take dtype bf16 or fp32" if half else "lower the learning rates"
        raise MagiCaptureError(f"the {what} is not a number at step {number}, which changed nothing: {remedy}")

    @torch.no_grad()
    def _pull_norms(self, rate: float) -> None:
        """Each vector's length n moves to n + lam (n0 - n), lam = min(1, 100 rate), n0 the mean length of all words.

        The authors' code has 0.4 for n0, which is about SD1.5's mean.
        """
        share = min(1.0, NORM_PULL * rate)
        for index in range(len(self._initial)):
            row = self._parameters[f"token.{index}"]
            norm = row.norm(dim=1, keepdim=True)
            row.mul_(1 + share * (self._mean_norm - norm) / norm)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the present phase moves."""
        groups = self._optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]

    def weights(self, phase: Phase) -> Terms[float]:
        """Phase 1 has the reconstruction alone (Eq. 9): text embeddings are no place for geometry (section 3.3)."""
        loss = self.config.loss
        if phase == "inversion":
            return Terms(1.0, 0.0, 0.0, 0.0)
        likeness_weight = loss.object_weight if self.config.kind == "object" else loss.identity_weight
        return Terms(1.0, loss.attention_weight, likeness_weight, loss.prior_weight)

    def backward(self, batch: Batch, phase: Phase, share: float) -> Tensor:
        """Add the gradient of one forward pass, each item weighing `share`. Returns the terms, each its weighed sum."""
        weights = self.weights(phase)
        with self.objective.terms(batch, weights) as terms:
            self._scaler.scale(terms.weighed(weights).sum() * share).backward()
        return torch.stack([term.detach().sum() for term in terms]) * share
