"""The nouns that travel down the line. Knows nothing else of ours.

Shape legend, used in every docstring of the core:

    B batch    N photos    L layers    K placeholder tokens    T prompt positions (77)    C channels
    H W pixels             h w latent grid (h = H / vae factor)

`images` are [B,3,H,W] in 0..1, `pixel_values` the same in -1..1; `masks` are [B,1,H,W] in 0..1, white = face.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # install.py uses this module where torch may be missing
    import torch
    from torch import Tensor

Side = Literal["subject", "style"]
CONCEPT_PATTERN = r"(?:subject|style)(?:_(?:[2-9]|[1-9][0-9]))?"  # what `concept_name` makes
Task = Literal["source", "reference", "composed", "class"]

MAX_MESSAGE = 2000  # characters that somebody may still read

SD1, TINY = "stable-diffusion-v1", "magicapture-tiny"  # architectures, as they stand in a shared file


class MagiCaptureError(Exception):
    """Something the user can mend. The message is one line that names the input and the remedy.

    It may quote a stranger's file: what is no visible character is written as its code, and the line ends somewhere.
    """

    def __init__(self, message: str) -> None:
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in message[:MAX_MESSAGE])
        super().__init__(shown if len(message) <= MAX_MESSAGE else f"{shown} ...")


class Dismissed(Exception):
    """A run by several processes is over; the first of them tells of it, this one has nothing to add."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One face in one picture, in that picture's pixels.

    box: [4] x1 y1 x2 y2. landmarks: [5,2] x y of the eye, eye, nose tip, mouth corner, mouth corner, each pair from
    left to right in the picture; None where only a mask is known. score: 0..1.
    """

    box: Tensor
    landmarks: Tensor | None = None
    score: float = 1.0
    source_index: int = 0  # which of the given photos it came from
    file_name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Portraits:
    """One side of the training set, framed: N square photos of one size with their face masks and faces.

    images: [N,3,S,S] 0..1. masks: [N,1,S,S] 0..1, white = face. faces: N faces in the pixels of these squares.
    parts: [N,1,S,S], the number of the class in CelebAMask-HQ for which a parser put a pixel into the mask, or 0.
    """

    images: Tensor
    masks: Tensor
    faces: list[Face] = field(default_factory=list)
    parts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


Photos = Mapping[str, Portraits]  # by concept: subject, subject_2 ..., style, style_2 ...


def concept_name(side: Side, number: int) -> str:
    """What the number-th person or style of a training is called in files and prompts: 1 is subject, 2 subject_2."""
    return side if number == 1 else f"{side}_{number}"


def side_of(concept: str) -> Side:
    """The inverse, as far as the side goes."""
    return "style" if concept.startswith("style") else "subject"


@dataclass(frozen=True, kw_only=True)
class PhotoNote:
    """What became of one photo: `used` says whether it is in the set, `text` says in words what was done and why.

    warnings: what speaks against a photo that is used all the same, such as `blurred`.
    """

    file_name: str
    used: bool
    text: str
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`good`, or what is wrong."""
        if not self.used:
            return f"not used: {self.text}"
        return f"usable: {', '.join(self.warnings)}" if self.warnings else "good"

    def __str__(self) -> str:
        said = f"{self.text}; {self.verdict}" if self.used and self.warnings else self.text
        return f"{'+' if self.used else '-'} {self.file_name}: {said}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Token:
    """A learned word. vectors: [n,C] fp32; `placeholder` is how it is written in prompts, `name` the concept.

    num_stages: 0 for a word that is the same at every noise level and reads as all its vectors. S for one that is
    another at each of S stages: its 2 S vectors are in turn a stage's word for the keys, and that for the values.
    """

    name: str
    placeholder: str
    initializer: str
    vectors: Tensor
    num_stages: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraLayer:
    """The update of one linear layer, W' = W + scale (alpha / rank) up down. down: [rank,in], up: [out,rank]."""

    down: Tensor
    up: Tensor
    alpha: float

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> LoraLayer:
        return LoraLayer(down=self.down.to(device, dtype), up=self.up.to(device, dtype), alpha=self.alpha)


@dataclass(frozen=True, kw_only=True, eq=False)
class LossTerms:
    """The terms of Eq. 10 before and after weighting, means over the items of a step.

    total = reconstruction + attention_weight * attention + identity_weight * identity + prior_weight * prior, each
    weight 0 in a phase that does not have the term. identity, an object's with object_weight, is zero where it does not
    apply; num_identity counts the items to which it did.
    """

    reconstruction: float
    attention: float
    identity: float
    prior: float
    total: float
    num_identity: int
