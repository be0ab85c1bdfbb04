"""MagiCapture's training as a generator: textual inversion, then LoRA and words together, then collages if asked.

In: a backbone, an encoded dataset, a configuration. Out: one `TrainStep` an optimizer step; the caller owns progress
and stopping. Closing the generator, at any step, leaves the backbone's modules as they were. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import collages, lora, tokens
from .config import TrainConfig
from .dataset import Batch, Dataset, ItemKey, join, step_items
from .losses import AttentionLoss
from .objective import Objective, Terms
from .run import State, TrainingRun, TrainStep, advance, checkpointed
from .tokens import Vocabulary
from .types import Token

if TYPE_CHECKING:
    from .backbone import Backbone

NORM_PULL = 100  # times the learning rate, of the authors' code


def train(
    backbone: Backbone,
    dataset: Dataset,
    config: TrainConfig,
    resume: State | None = None,
    attention_loss: AttentionLoss | None = None,
) -> Generator[TrainStep[Run]]:
    """Phase 1 moves the learned words alone (Eq. 9), phase 2 the LoRA and the words (Eq. 10); so does phase 3, which
    is there where it is asked for and learns from collages.

    resume: a `TrainStep.state()` of the same photos and configuration; the run goes on bit for bit as if it had never
    stopped. attention_loss: instead of the configuration's attention refocusing, under the same weight; None for
    that. Raises MagiCaptureError as `advance` does.
    """
    with open_run(backbone, dataset, config, attention_loss) as run:
        yield from advance(run, resume)


@contextmanager
def open_run(
    backbone: Backbone, dataset: Dataset, config: TrainConfig, attention_loss: AttentionLoss | None = None
) -> Iterator[Run]:
    """A run whose changes to the backbone's modules are undone on leaving."""
    with checkpointed(backbone.unet, config.gradient_checkpointing), ExitStack() as undo:
        yield Run(backbone, dataset, config, undo, attention_loss)


class Run(TrainingRun):
    """The learned words' rows and the LoRA. phases: inversion, then tuning, then clone where it has steps."""

    config: TrainConfig
    objective: Objective

    def __init__(
        self,
        backbone: Backbone,
        dataset: Dataset,
        config: TrainConfig,
        undo: ExitStack,
        attention_loss: AttentionLoss | None = None,
    ) -> None:
        super().__init__(backbone, config)
        self.dataset = dataset
        self.phases = {"inversion": config.inversion.num_steps, "tuning": config.tuning.num_steps}
        if config.clone_steps:
            self.phases["clone"] = config.clone_steps
        self._undo = undo
        self._generator = torch.Generator().manual_seed(config.seed)
        table = backbone.text_encoder.get_input_embeddings().weight
        self._mean_norm = table.detach().float().norm(dim=1).mean()
        self._initial = tokens.initial_tokens(config.concepts, backbone.tokenizer, table, self._generator)
        rows = undo.enter_context(tokens.injected(backbone.text_encoder, self._initial))
        self._parameters |= {f"token.{index}": row for index, row in enumerate(rows)}
        self.vocabulary = Vocabulary.of(backbone.tokenizer, self._initial)
        recogniser = dataset.likeness.recogniser if dataset.likeness else None
        ranks = list(config.lora.rank_split.values())
        self.objective = Objective(
            backbone, config.loss, self.vocabulary, recogniser, ranks, attention_loss, dataset.controls
        )

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

    # -- phases --------------------------------------------------------------------------------------------------------

    def begin(self, phase: str, resume: State, midway: bool) -> None:
        settings = self.config.inversion if phase == "inversion" else self.config.tuning
        rows = [parameter for name, parameter in self._parameters.items() if name.startswith("token.")]
        groups = [{"params": rows, "base": settings.token_learning_rate}]
        if phase != "inversion":
            groups.append({"params": self._lora_parameters(), "base": self.config.tuning.lora_learning_rate})
        for row in rows:  # after the injection: peft freezes all that is not its own
            row.requires_grad_(settings.token_learning_rate > 0)
        self.optimize(groups, settings.weight_decay, resume, midway)
        text_moves = settings.token_learning_rate > 0 or (phase != "inversion" and self.config.lora.text_encoder)
        self.objective.remember_text(not text_moves)

    def _lora_parameters(self) -> list[nn.Parameter]:
        """Put in place by the first phase that moves them."""
        if held := [parameter for name, parameter in self._parameters.items() if name.startswith("lora.")]:
            return held
        return self._inject_lora()

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

    @property
    def dearest_phase(self) -> str:
        return "tuning"

    # -- one step ------------------------------------------------------------------------------------------------------

    def items(self, phase: str, step: int) -> list[ItemKey]:
        return step_items(self.config, phase, step)

    def draw(self, items: Sequence[ItemKey]) -> Batch:
        if items[0].phase == "clone":
            return join([collages.draw_item(self.backbone.vae, self.dataset, self.config, item) for item in items])
        return self.dataset.draw(self.config, items)

    def num_identity(self, batch: Batch) -> int:
        return len(batch.identity_items)

    def weights(self, phase: str) -> Terms[float]:
        """Phase 1 has the reconstruction alone (Eq. 9): text embeddings are no place for geometry (section 3.3).

        Collages are asked for what is in their slots, and for nothing else than attention's place outside.
        """
        loss = self.config.loss
        if phase == "inversion":
            return Terms(1.0, 0.0, 0.0, 0.0)
        if phase == "clone":
            return Terms(1.0, loss.attention_weight, 0.0, 0.0)
        likeness_weight = loss.object_weight if self.config.kind == "object" else loss.identity_weight
        return Terms(1.0, loss.attention_weight, likeness_weight, loss.prior_weight)

    def moved(self, phase: str, fraction_left: float) -> None:
        if phase == "inversion" and self.config.inversion.pull_norm:
            self._pull_norms(rate=self.config.inversion.token_learning_rate * fraction_left)

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
