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
from .likeness import embed_face
from .sheets import contact_sheet
from .types import MagiCaptureError

if TYPE_CHECKING:
    from .dino import Dino
    from .faces import FaceDetector
    from .identity import Likeness, Recogniser
    from .run import TrainingRun

NUM_STEPS = 20  # of the sampling


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of a look: what it is called, its prompt, and the words whose maps lie beside it. person: whose face
    it is to show; such pictures are the sample, and compared. Empty where it is only looked at."""

    label: str
    prompt: str
    words: Sequence[str]
    person: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was seen after a step.

    sample: [3,H,W] in 0..1, the pictures that are to show somebody, one beside the other. sheet: [3,H',W'], all
    pictures, from the same noise, and on each where its words look. likeness: mean cosine -1..1 of a sample picture's
    face to the person's photos, 0 where it shows no face, the mean over those pictures; None where nobody can tell.
    """

    step: int
    sample: Tensor
    sheet: Tensor
    likeness: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """How a training is looked at.

    every: steps between two looks, 0 = only after the last. patience: so many scored looks in a row, none more alike,
    end the training; 0 = none do. detector: finds the face of a sample picture; without it, or without a recogniser,
    there is no likeness. on_look: gets each look. on_sampling: is called at each step of a look's sampling.
    """

    every: int = 100
    patience: int = 0
    detector: FaceDetector | None = None
    on_look: Callable[[Look], None] = lambda look: None
    on_sampling: Callable[[int, int], None] = lambda step, num_steps: None

    def is_due(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (self.every > 0 and step % self.every == 0)

    def is_out_of_patience(self, likenesses: Sequence[float]) -> bool:
        """likenesses: of every scored look so far, in order."""
        return bool(likenesses) and 0 < self.patience < len(likenesses) - likenesses.index(max(likenesses))

    def check_patience(self, recogniser: Recogniser | Dino | None) -> None:
        """Raises MagiCaptureError for a patience that nothing could ever tell to be at its end."""
        if self.patience and (recogniser is None or self.detector is None or not self.every):
            raise MagiCaptureError(
                "patience: nobody could tell the likeness; give a face recogniser, the face networks, and sample "
                "pictures every so many steps, or set it to 0"
            )

    def look(self, run: TrainingRun, views: Sequence[View], step: int, likeness: Likeness | None) -> Look:
        cells: list[Tensor] = []
        labels: list[str] = []
        samples: list[Tensor] = []
        cosines: list[float | None] = []
        for view in views:
            image, maps = self._sample(run, view)
            cells += [image, *maps.values()]
            labels += [view.label, *maps]
            if view.person:
                samples.append(image)
                cosines.append(self._compare(image, view.person, likeness))
        known = [cosine for cosine in cosines if cosine is not None]
        return Look(
            step=step,
            sample=torch.cat(samples, -1),
            sheet=contact_sheet(cells, len(cells), labels),
            likeness=mean(known) if known else None,
        )

    def _sample(self, run: TrainingRun, view: View) -> tuple[Tensor, dict[str, Tensor]]:
        """[3,H,W], and by word where each of its words looks, of the same size."""
        record = AttentionRecord(view.words)
        size = (run.config.resolution, run.config.resolution)
        images = run.preview(
            view.prompt, num_steps=NUM_STEPS, seed=run.config.seed, size=size, record=record, on_step=self.on_sampling
        )
        maps = {word: overlay(images, record.heatmap(word, size))[0] for word in record.words}
        return images[0], maps

    @torch.no_grad()
    def _compare(self, image: Tensor, person: str, likeness: Likeness | None) -> float | None:
        if likeness is None or self.detector is None or not len(likeness.embeddings[person]):
            return None
        embeds = embed_face(likeness.recogniser, self.detector, image)
        return 0.0 if embeds is None else float((likeness.embeddings[person] @ embeds[0].cpu()).mean())


def describe(looks: Sequence[Sequence[float]]) -> str:
    """looks: [step, likeness] -> one line; empty where nobody could tell."""
    return "likeness by step " + ", ".join(f"{step:.0f}: {cosine:.3f}" for step, cosine in looks) if looks else ""
