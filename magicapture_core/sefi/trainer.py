"""SeFi-IDE's training: the words of all stages learn one person's photos, beside a frozen model.

In: a backbone, encoded photos, a configuration. Out: one `TrainStep` an optimizer step; the caller owns progress and
stopping. Closing the generator, at any step, leaves the backbone's modules as they were. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..dataset import ItemKey
from ..objective import Terms
from ..run import State, TrainingRun, TrainStep, advance, checkpointed
from ..tokens import extended
from ..types import Token
from .config import SefiConfig
from .objective import Batch, EncodedPhotos, SefiObjective, plain_word, token_of
from .stages import stage_words

if TYPE_CHECKING:
    from ..backbone import Backbone

PHASE = "identity"


def train(
    backbone: Backbone, photos: EncodedPhotos, config: SefiConfig, resume: State | None = None
) -> Generator[TrainStep[SefiRun]]:
    """Moves the identity alone. resume: a `TrainStep.state()` of the same photos and configuration; the run goes on bit
    for bit as if it had never stopped. Raises MagiCaptureError as `advance` does."""
    with open_run(backbone, photos, config) as run:
        yield from advance(run, resume)


@contextmanager
def open_run(backbone: Backbone, photos: EncodedPhotos, config: SefiConfig) -> Iterator[SefiRun]:
    """A run whose changes to the backbone's modules are undone on leaving."""
    generator = torch.Generator().manual_seed(config.seed)
    words = stage_words(config, plain_word(backbone, config), generator).to(backbone.unet.device)
    with checkpointed(backbone.unet, config.gradient_checkpointing), extended(backbone.text_encoder, words):
        yield SefiRun(backbone, photos, config, words)


class SefiRun(TrainingRun):
    """The module that gives the words of all stages. Its one phase is called identity."""

    config: SefiConfig
    objective: SefiObjective

    def __init__(self, backbone: Backbone, photos: EncodedPhotos, config: SefiConfig, words: nn.Module) -> None:
        """words: what the text encoder reads the learned words from."""
        super().__init__(backbone, config)
        self.photos, self._words = photos, words
        self.phases = {PHASE: config.num_steps}
        self._parameters |= dict(words.named_parameters())
        self.objective = SefiObjective(backbone, config, words)
        self.vocabulary = self.objective.vocabulary

    def token(self) -> Token:
        """The word of all stages as it is now, copied to the CPU."""
        return token_of(self.config, self._words)

    def begin(self, phase: str, resume: State, midway: bool) -> None:
        groups = [{"params": [*self._parameters.values()], "base": self.config.learning_rate}]
        self.optimize(groups, self.config.weight_decay, resume, midway)

    def items(self, phase: str, step: int) -> list[ItemKey]:
        return [ItemKey(phase=phase, step=step, group=group, task="source") for group in range(self.config.accumulate)]

    def draw(self, items: Sequence[ItemKey]) -> Batch:
        return self.photos.draw(self.config, items)

    def weights(self, phase: str) -> Terms[float]:
        return Terms(1.0, self.config.attention_weight, 0.0, 0.0)
