"""A look at a training while it runs: a picture from each kind of prompt, where its words look, whose face it shows.

In: a live run. Out: pictures, heat maps, a likeness. It samples from a seed of its own, so looking changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .heatmaps import AttentionRecord, overlay
from .images import contact_sheet
from .likeness import embed_face
from .prompts import fill, templates
from .types import Task

if TYPE_CHECKING:
    from .dataset import Dataset
    from .faces import FaceDetector
    from .identity import Likeness
    from .trainer import Run

NUM_STEPS = 20  # of the sampling


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was seen after a step.

    composed: [3,H,W] in 0..1, from the composed prompt; of several people or styles one beside the other, everybody in
    one at least. sheet: [3,H',W'], those pictures and one from each source and reference prompt, all from the same
    noise, and on each where its learned words look. likeness: mean cosine -1..1 of a composed picture's face to the
    person's photos, 0 where it shows no face, the mean over those pictures; None where nobody can tell.
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
        composed: list[Tensor] = []
        cosines: list[float | None] = []
        for task, person, style in prompts_of(run.dataset):
            image, maps = self._sample(run, task, person, style)
            cells += [image, *maps.values()]
            labels += [task, *maps]
            if task == "composed":
                composed.append(image)
                cosines.append(self._compare(image, person, likeness))
        known = [cosine for cosine in cosines if cosine is not None]
        return Look(
            step=step,
            composed=torch.cat(composed, -1),
            sheet=contact_sheet(cells, len(cells), labels),
            likeness=mean(known) if known else None,
        )

    def _sample(self, run: Run, task: Task, person: str, style: str) -> tuple[Tensor, dict[str, Tensor]]:
        """[3,H,W] from the task's first prompt, and by word where each of its words looks, of the same size."""
        config = run.config
        words = [config.concepts[name].placeholder_token for name in (person, style)]
        prompt = fill(templates(config.noun(person))[task][0], *words)
        record = AttentionRecord([word for word in words if word in prompt])
        size = (config.resolution, config.resolution)
        images = run.preview(
            prompt, num_steps=NUM_STEPS, seed=config.seed, size=size, record=record, on_step=self.on_sampling
        )
        maps = {word: overlay(images, record.heatmap(word, size))[0] for word in record.words}
        return images[0], maps

    @torch.no_grad()
    def _compare(self, image: Tensor, person: str, likeness: Likeness | None) -> float | None:
        if likeness is None or self.detector is None or not len(likeness.embeddings[person]):
            return None
        embeds = embed_face(likeness.recogniser, self.detector, image)
        return 0.0 if embeds is None else float((likeness.embeddings[person] @ embeds[0].cpu()).mean())


def prompts_of(dataset: Dataset) -> list[tuple[Task, str, str]]:
    """Task, person and style of each picture of a look: every person, every style, and pairs in which all occur."""
    people, styles = dataset.names("subject"), dataset.names("style")
    pairs = [(people[at % len(people)], styles[at % len(styles)]) for at in range(max(len(people), len(styles)))]
    return [
        *(("source", person, styles[0]) for person in people),
        *(("reference", people[0], style) for style in styles),
        *(("composed", person, style) for person, style in pairs),
    ]


def describe(looks: Sequence[Sequence[float]]) -> str:
    """looks: [step, likeness] -> one line; empty where nobody could tell."""
    return "likeness by step " + ", ".join(f"{step:.0f}: {cosine:.3f}" for step, cosine in looks) if looks else ""
