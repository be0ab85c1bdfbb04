"""What becomes of each face of a picture that is finished: which are chosen, what was done, whose face it still is.

In: faces, and what restore.py did with them. Out: words and means for a report. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from torch import Tensor

from .types import Face

Fate = Literal["restored", "put back", "not chosen", "outside of the mask"]
MAX_LIKENESS_LOSS = 0.02  # a third of what the paper's own post-processing costs on average, .566 - .508
NOT_CHECKED = "likeness: not checked; give a face recogniser and photos of the person to see whom restoration changes"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one face. before, after: its likeness, -1..1, enlarged and then restored, also where that was put back;
    None where it was not compared: without a guard, and where that does not watch it."""

    fate: Fate
    before: float | None = None
    after: float | None = None

    @property
    def finished(self) -> float | None:
        """The likeness in the finished picture."""
        return self.before if self.fate == "put back" else self.after


def choose(faces: Sequence[Face], region: Tensor | None = None, face_index: int = -1) -> list[Fate]:
    """For each face "restored" where it is to be, else why not. region [1,H,W]: white where faces may change, None =
    everywhere. face_index: counted from 0 from the left, -1 = all."""
    return [_choose(face, face_index in (-1, number), region) for number, face in enumerate(faces)]


def _choose(face: Face, is_wanted: bool, region: Tensor | None) -> Fate:
    if not is_wanted:
        return "not chosen"
    left, top, right, bottom = face.box.clamp(min=0).int().tolist()
    if region is not None and not (region[:, top : bottom + 1, left : right + 1] > 0).any():
        return "outside of the mask"
    return "restored"


def describe(faces: Sequence[Face], outcomes: Sequence[Outcome]) -> str:
    """In words, what was done with the faces of a picture."""
    if not faces:
        return "no face found, nothing restored"
    if all(outcome.fate == "not chosen" for outcome in outcomes):
        numbers = "number 0" if len(faces) == 1 else f"numbers 0 to {len(faces) - 1} from the left"
        return f"{_count(len(faces))} found, {numbers}; face_index names none of them, nothing restored"
    heights = [f"{float(face.box[3] - face.box[1]):.0f} px" for face in faces]
    if len(faces) > 1:
        heights = [f"face {number}: {height}" for number, height in enumerate(heights)]
    parts = [_group("restored", heights, outcomes), _group("put back", heights, outcomes, " as it was")]
    for fate in ("not chosen", "outside of the mask"):
        number = sum(outcome.fate == fate for outcome in outcomes)
        parts.append(f"{_count(number)} {fate} left alone" if number else "")
    return ", ".join(filter(None, parts)) or "0 faces restored"


def _group(fate: Fate, heights: Sequence[str], outcomes: Sequence[Outcome], more: str = "") -> str:
    """All faces of one fate, with their sizes and likenesses."""
    is_guarded = any(outcome.before is not None for outcome in outcomes)
    told = [height + _likeness(outcome, is_guarded) for height, outcome in zip(heights, outcomes, strict=True)]
    chosen = [text for text, outcome in zip(told, outcomes, strict=True) if outcome.fate == fate]
    if not chosen:
        return "0 faces restored" if fate == "restored" else ""
    return f"{_count(len(chosen))} {fate}{more} ({'; '.join(chosen)})"


def _likeness(outcome: Outcome, is_guarded: bool) -> str:
    if outcome.before is None:
        return ", less like the reference, not compared" if is_guarded else ""
    return f", likeness {outcome.before:.3f} -> {outcome.after:.3f}"


def mean_likeness(outcomes: Sequence[Outcome]) -> tuple[float, float] | None:
    """Before and in the finished pictures, the means over the faces that were compared; None where none was."""
    before = [outcome.before for outcome in outcomes if outcome.before is not None]
    finished = [outcome.finished for outcome in outcomes if outcome.finished is not None]
    return (mean(before), mean(finished)) if before else None


def describe_likeness(outcomes: Sequence[Outcome], rule: str) -> str:
    """The last line of a report. outcomes: of all pictures. rule: what is put back."""
    means = mean_likeness(outcomes)
    if means is None:
        return "likeness: no face was restored, nothing to compare"
    compared = sum(outcome.before is not None for outcome in outcomes)
    return (
        f"likeness: {means[0]:.3f} before, {means[1]:.3f} in the finished pictures, the mean of {_count(compared)}; "
        f"{rule}"
    )


def _count(number: int) -> str:
    return "1 face" if number == 1 else f"{number} faces"
