"""Which square of a photo to train on, and the photo, its mask and its face in that square.

Knows boxes, not faces: where one comes from is not asked here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from .images import resize
from .types import Face

LEAST_SHARE, MOST_SHARE = 0.25, 0.6  # of the square's height that a face may take
MARGIN = 0.06  # of the square's side, kept free around the face


@dataclass(frozen=True, kw_only=True)
class Square:
    """A square in whole pixels of a photo of `height` x `width`; it reaches beyond the photo only where it must."""

    left: int
    top: int
    side: int
    height: int
    width: int

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels beyond the photo, (left and right together, above and below together)."""
        return max(self.side - self.width, 0), max(self.side - self.height, 0)

    @property
    def is_whole_side(self) -> bool:
        """Whether the photo is cut along one direction only, if at all."""
        return self.side >= min(self.height, self.width)

    def cut(self, image: Tensor, size: int, padding: str = "replicate") -> Tensor:
        """image [C,H,W] -> [C,size,size]; beyond the photo its edge ("replicate") or black ("constant")."""
        right, bottom = self.left + self.side, self.top + self.side
        inside = image[:, max(self.top, 0) : bottom, max(self.left, 0) : right]
        missing = (max(-self.left, 0), max(right - self.width, 0), max(-self.top, 0), max(bottom - self.height, 0))
        square = F.pad(inside[None], missing, mode=padding) if any(missing) else inside[None]
        return resize(square, (size, size))[0]

    def points(self, points: Tensor, size: int) -> Tensor:
        """points [...,2] of the photo -> in the pixels of what `cut` returns."""
        return (points - points.new_tensor([self.left, self.top])) * (size / self.side)

    def face(self, face: Face, size: int) -> Face:
        """The face, in the pixels of what `cut` returns."""
        landmarks = None if face.landmarks is None else self.points(face.landmarks, size)
        return replace(face, box=self.points(face.box.reshape(2, 2), size).flatten(), landmarks=landmarks)


def frame(box: Tensor, height: int, width: int, share: float, most: float = MOST_SHARE) -> Square:
    """The square that shows a face box [4] at 25 % to `most` of its height, inside the photo if that can be.

    A photo whose largest square does so already loses as little as possible: its middle is kept. A smaller face is cut
    out at `share` of the height. A larger one gets room by padding, just enough.
    """
    left, top, right, bottom = box.tolist()
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    face_side, largest = max(bottom - top, right - left), min(height, width)
    if face_side / largest < LEAST_SHARE:
        side, middle = round(face_side / share), ((left + right) / 2, (top + bottom) / 2)
    else:
        side, middle = max(largest, math.ceil(face_side / most)), (width / 2, height / 2)
    return Square(
        left=_start(width, side, left, right, middle[0]),
        top=_start(height, side, top, bottom, middle[1]),
        side=side,
        height=height,
        width=width,
    )


def _start(length: int, side: int, low: float, high: float, middle: float) -> int:
    """Where `side` pixels of `length` begin: around `middle`, moved to hold low..high, moved into the photo."""
    if side >= length:
        return (length - side) // 2
    margin = side * MARGIN
    start = min(max(middle - side / 2, high + margin - side), low - margin)
    return round(min(max(start, 0), length - side))
