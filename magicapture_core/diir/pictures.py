"""Pictures with their faces redrawn as a person's: whom the prompt names, what is pasted and what is told of it.

In: a picture, its faces, a restorer. Out: the picture, changed inside the face masks alone, and words on each face.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..face_outcomes import NOT_CHECKED, Outcome, describe, describe_likeness
from ..prompts import PERSON, fill_prompt
from ..restore import Guard, Restorer, match_colour, restore_and_upscale
from ..sefi.config import SLOT, fill_word
from ..types import Face
from ..upscale import Progress

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..sefi.identity import SefiIdentity

PERSONAL_PROMPT = f"a photo of {SLOT}"
SOMEBODY = f"a {PERSON}"  # of whom the prompt knows nothing: a model that others patched knows them itself


@dataclass(frozen=True, kw_only=True, eq=False)
class Redrawn:
    """A finished picture [3,H,W]. seconds: that it took."""

    image: Tensor
    faces: Sequence[Face]
    outcomes: Sequence[Outcome]
    seconds: float

    def __str__(self) -> str:
        return f"{describe(self.faces, self.outcomes)}; {self.seconds:.1f} s"


def fill_personal(prompt: str, artifact: Artifact | None, identity: SefiIdentity | None) -> str:
    """`{person}` becomes the identity's word, or else the LoRA's person, or else anybody; `{subject}` and `{style}` the
    LoRA's words. Raises MagiCaptureError for a word that the LoRA lacks."""
    named = SOMEBODY
    if artifact is not None:
        subject = next((token for token in artifact.tokens if token.name == "subject"), None)
        named = f"{subject.placeholder} {subject.initializer or PERSON}" if subject else named
    return fill_prompt(fill_word(prompt, identity.placeholder if identity else named), artifact)


def redraw_faces(
    image: Tensor,
    faces: Sequence[Face],
    restorer: Restorer,
    *,
    region: Tensor | None = None,
    face_index: int = -1,
    guard: Guard | None = None,
    progress: Progress | None = None,
) -> Redrawn:
    """image [3,H,W] 0..1 at its own size. The faces keep the colours and the light that they had; every bit outside of
    their masks stays. Options as for `restore_and_upscale`."""
    start = time.perf_counter()
    options = {"region": region, "face_index": face_index, "guard": guard, "progress": progress}
    finished, outcomes = restore_and_upscale(image, faces, match_colour(restorer), factor=1.0, **options)
    return Redrawn(image=finished, faces=faces, outcomes=outcomes, seconds=time.perf_counter() - start)


def report(guard: Guard | None, pictures: Sequence[Redrawn]) -> list[str]:
    """A line for each picture, and whether its faces are more the person's than before."""
    lines = [f"picture {number}: {picture}" for number, picture in enumerate(pictures, 1)]
    every = [outcome for picture in pictures for outcome in picture.outcomes]
    return [*lines, describe_likeness(every, guard.rule) if guard else NOT_CHECKED]
