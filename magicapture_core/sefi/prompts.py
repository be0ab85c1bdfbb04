"""What an identity is asked to do while it trains, and how several of them go into one prompt."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from ..types import MagiCaptureError
from .identity import SefiIdentity

# What a person is asked for who trains an identity: that the sentence still counts. Words that the tiny model has too.
EDITS = {
    "glasses": "a photo of {person} wearing glasses",
    "smiling": "a photo of {person} smiling",
    "background": "a photo of {person} in front of a blue background",
}
IN_A_STYLE = "A photo of {person} in the {style} style"  # of an identity together with a LoRA
NUMBERED_SLOT = r"\{person(?:_([2-9]|[1-9][0-9]))?\}"


def told_apart(identities: Sequence[SefiIdentity], words: Collection[str] = ()) -> list[SefiIdentity]:
    """The same, where two have the same word the later with a number: <person>, <person_2>. words: that are taken."""
    apart: list[SefiIdentity] = []
    for identity in identities:
        taken, word, number = {*words, *(other.placeholder for other in apart)}, identity.placeholder, 2
        while word in taken:
            word, number = f"{identity.placeholder[:-1]}_{number}>", number + 1
        apart.append(replace(identity, placeholder=word))
    return apart


def everybody(count: int) -> str:
    """The slots of so many people in one sentence: `{person}, {person_2} and {person_3}`."""
    slots = ["{person}", *(f"{{person_{number}}}" for number in range(2, count + 1))]
    return " and ".join([", ".join(slots[:-1]), slots[-1]] if count > 1 else slots)


def fill_people(prompt: str, identities: Sequence[SefiIdentity]) -> str:
    """`{person}` becomes the first one's word, `{person_2}` the second's; other text stays as it is.

    Raises MagiCaptureError for one too many.
    """

    def word(slot: re.Match[str]) -> str:
        number = int(slot[1] or 1)
        if number > len(identities):
            raise MagiCaptureError(f"prompt: {slot[0]} has no identity; give a further --identity, or leave it out")
        return identities[number - 1].placeholder

    return re.sub(NUMBERED_SLOT, word, prompt)
