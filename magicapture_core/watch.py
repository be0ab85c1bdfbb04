"""A look at a training while it runs: a picture from each kind of prompt, where its words look, whose face it shows.

In: a live run. Out: pictures, heat maps, a likeness. It samples from a seed of its own, so looking changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .heatmaps import AttentionRecord, overlay
from .images import contact_sheet
from .likeness import embed_face
from .prompts import TEMPLATES, fill
from .types import Task

if TYPE_CHECKING:
    from .faces import FaceDetector
    from .identity import Likeness
    from .trainer import Run

NUM_STEPS = 20  # of the sampling


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was seen after a step.

    composed: [3,H,W] in 0..1, from the composed prompt. sheet: [3,H',W'], that picture beside one from a source and one
    from a reference prompt, all from the same noise, and on each where its learned words look. likeness: mean cosine
    -1..1 of the composed picture's face to the subject's photos, 0 where it shows no face; None where nobody can tell.
    """

    step: int
    composed: Tensor
    sheet: Tensor
    likeness: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """How a training is looked at.

    every: steps between two looks, 0 = only after the last. patience: so many looks at phase 2 in a row, none more
    alike, end the training; 0 = none do. detector: finds the face of the composed picture; without it, or without a
    recogniser, there is no likeness. on_look: gets each look. on_sampling: is called at each step of a look's sampling.
    """

    every: int = 100
    patience: int = 0
    detector: FaceDetector | None = None
    on_look: Callable[[Look], None] = lambda look: None
    on_sampling: Callable[[int, int], None] = lambda step, num_steps: None

    def is_due(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (self.every > 0 and step % self.every == 0)

    def is_out_of_patience(self, likenesses: Sequence[float]) -> bool:
        """likenesses: of every look at phase 2 so far, in order."""
        return bool(likenesses) and 0 < self.patience < len(likenesses) - likenesses.index(max(likenesses))

    def look(self, run: Run, step: int, likeness: Likeness | None) -> Look:
        cells: list[Tensor] = []
        labels: list[str] = []
        pictures: dict[Task, Tensor] = {}
        for task in TEMPLATES:
            pictures[task], maps = self._sample(run, task)
            cells += [pictures[task], *maps.values()]
            labels += [task, *maps]
        composed = pictures["composed"]
        return Look(
            step=step,
            composed=composed,
            sheet=contact_sheet(cells, len(cells), labels),
            likeness=self._compare(composed, likeness),
        )

    def _sample(self, run: Run, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        """[3,H,W] from the task's first prompt, and by word where each of its words looks, of the same size."""
        config = run.config
        prompt = fill(TEMPLATES[task][0], config.subject.placeholder_token, config.style.placeholder_token)
        record = AttentionRecord([word for word in run.objective.placeholders if word in prompt])
        size = (config.resolution, config.resolution)
        images = run.preview(
            prompt, num_steps=NUM_STEPS, seed=config.seed, size=size, record=record, on_step=self.on_sampling
        )
        maps = {word: overlay(images, record.heatmap(word, size))[0] for word in record.words}
        return images[0], maps

    @torch.no_grad()
    def _compare(self, image: Tensor, likeness: Likeness | None) -> float | None:
        if likeness is None or self.detector is None or not len(likeness.embeddings):
            return None
        embeds = embed_face(likeness.recogniser, self.detector, image)
        return 0.0 if embeds is None else float((likeness.embeddings @ embeds[0].cpu()).mean())


def describe(looks: Sequence[Sequence[float]]) -> str:
    """looks: [step, likeness] -> one line; empty where nobody could tell."""
    return "likeness by step " + ", ".join(f"{step:.0f}: {cosine:.2f}" for step, cosine in looks) if looks else ""
