"""Who stands where: a LoRA or an identity, a region, and what is said of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..artifact import Artifact
from ..prompts import PERSON, fill_prompt
from ..sefi.config import SLOT, fill_word
from ..sefi.identity import SefiIdentity
from ..types import MagiCaptureError

ALONE = f"a photo of {SLOT}"  # of somebody of whom nothing is said
DELAY = 0.4  # of the steps, those that a layout makes where there is one


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """One of a group.

    made: a MagiCapture LoRA, whose first person is meant, or a SeFi-IDE identity. mask: [1,H,W] 0..1, white where they
    stand. prompt: about them alone, with `{person}` where they are named; of a LoRA `{subject}` and `{style}` are known
    too. strength: 0..1, how much of their region is theirs.
    """

    made: Artifact | SefiIdentity
    mask: Tensor
    prompt: str = ""
    strength: float = 1.0

    @property
    def region(self) -> Tensor:
        """[1,H,W] 0..1, how much of each place is theirs."""
        return self.mask * self.strength

    @property
    def artifact(self) -> Artifact | None:
        return self.made if isinstance(self.made, Artifact) else None

    @property
    def identities(self) -> list[SefiIdentity]:
        return [] if isinstance(self.made, Artifact) else [self.made]

    @property
    def name(self) -> str:
        """As it is written in prompts: an identity's word; a LoRA's, and what it was before it was learned."""
        if not isinstance(self.made, Artifact):
            return self.made.placeholder
        subject = next((token for token in self.made.tokens if token.name == "subject"), None)
        if subject is None:
            raise MagiCaptureError(f"{self.made.name}: it holds no person, only a style; take one that does")
        return f"{subject.placeholder} {subject.initializer or PERSON}"

    def text(self, base_prompt: str) -> str:
        """What their region shows: they, and after a comma what is said of the whole picture."""
        about = fill_prompt(fill_word(self.prompt.strip() or ALONE, self.name), self.artifact)
        return ", ".join(filter(None, (about, base_prompt.strip())))


def check_base(*prompts: str) -> None:
    """Raises MagiCaptureError for a name in what is said of the whole picture: there nobody is known."""
    for prompt in prompts:
        if SLOT in prompt:
            raise MagiCaptureError(
                f"prompt, negative, layout: {SLOT} names nobody there; write it in the prompt of the person meant"
            )
        fill_prompt(prompt, None)


def overlaps(people: Sequence[Person]) -> list[str]:
    """In words, which two share how much of the picture: there each is half there."""
    shared = [
        (one, other, float(torch.minimum(people[one].region, people[other].region).mean()))
        for one, other in combinations(range(len(people)), 2)
    ]
    return [
        f"person {one + 1} and person {other + 1} share {share:.1%} of the picture, where they mix"
        for one, other, share in shared
        if share >= 0.01
    ]


def check_people(people: Sequence[Person]) -> Sequence[Person]:
    """The same. Raises MagiCaptureError for nobody, for regions of different sizes, and for an empty one."""
    if not people:
        raise MagiCaptureError("people: there is nobody; give at least one, with a region")
    sizes = {tuple(person.mask.shape[-2:]) for person in people}
    if len(sizes) > 1:
        told = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise MagiCaptureError(f"mask: the regions are of different sizes, {told}; give all of one size")
    for number, person in enumerate(people, 1):
        if not person.mask.any():
            raise MagiCaptureError(f"mask: the region of person {number} is empty; paint it white where they stand")
    return people
