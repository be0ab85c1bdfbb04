"""Where people stand: region masks [N,1,H,W] of 0 and 1, from a few words or from the faces of a guide picture.

Regions go from left to right, and from top to bottom. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from PIL import ImageDraw
from torch import Tensor

from ..images import from_pil, to_pil
from ..sheets import load_font
from ..types import Face, MagiCaptureError

Size = tuple[int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height, 0..1

COLOURS = ((235, 80, 60), (60, 130, 240), (60, 190, 90), (245, 190, 40), (170, 90, 220), (40, 190, 200))
TINT = 0.45  # of the colour
ABOVE, BESIDE = 0.7, 1.5  # of a face's height above its box, of its width to each side of its middle: hair, shoulders
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"


def grid(rows: int, columns: int, size: Size, margin: float = 0.0) -> Tensor:
    """Rows x columns equal cells. margin: 0..0.45, what each cell loses on every side, as a share of its own."""
    if rows < 1 or columns < 1:
        raise MagiCaptureError(f"layout: {rows} rows and {columns} columns hold nobody; take at least one of each")
    cells = [
        ((column + margin) / columns, (row + margin) / rows, (column + 1 - margin) / columns, (row + 1 - margin) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return boxes(cells, size)


def boxes(places: Sequence[Box], size: Size) -> Tensor:
    """A rectangle each. Raises MagiCaptureError for one that is empty or lies outside."""
    height, width = size
    masks = torch.zeros(len(places), 1, height, width)
    for number, (mask, (left, top, right, bottom)) in enumerate(zip(masks, places, strict=True), 1):
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise MagiCaptureError(
                f"boxes: box {number} is {left:g}, {top:g}, {right:g}, {bottom:g}; give left, top, right and bottom as "
                "shares of the picture, 0 to 1, left before right and top before bottom"
            )
        rows, columns = (
            _pixels(low, high, length) for low, high, length in ((top, bottom, height), (left, right, width))
        )
        mask[:, rows, columns] = 1
    return masks


def _pixels(low: float, high: float, length: int) -> slice:
    """Shares of a length -> its whole pixels, one at least."""
    start = min(round(low * length), length - 1)
    return slice(start, max(round(high * length), start + 1))


def read_boxes(text: str) -> list[Box]:
    """Four numbers a line, or between semicolons. Raises MagiCaptureError for anything else."""
    found = []
    for line in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        numbers = re.split(r"[,\s]+", line.strip("[]() ,"))
        if len(numbers) != 4 or not all(re.fullmatch(NUMBER, number) for number in numbers):
            raise MagiCaptureError(
                f"boxes: {line[:60]!r} is no box; give four numbers, such as 0, 0.1, 0.5, 1, and a box a line"
            )
        left, top, right, bottom = map(float, numbers)
        found.append((left, top, right, bottom))
    if not found:
        raise MagiCaptureError("boxes: there is none; give four numbers a line, such as 0, 0.1, 0.5, 1")
    return found


def around_faces(faces: Sequence[Face], picture: Size, size: Size) -> Tensor:
    """One region for each face of a guide picture, head, shoulders and what is below, from left to right. picture: the
    guide's size, whose pixels the faces are in.

    Two people are parted in the middle between their faces, those side by side by a line down, others by one across.
    """
    if not faces:
        raise MagiCaptureError("guide: no face is found in it; take a picture that shows them, or another layout")
    height, width = picture
    found = sorted(faces, key=lambda face: _middle(face)[0])
    places = []
    for face in found:
        left, top, right, bottom = face.box.tolist()
        reach, above = BESIDE * (right - left), ABOVE * (bottom - top)
        middle = _middle(face)
        place = (max(middle[0] - reach, 0), max(top - above, 0), min(middle[0] + reach, width), float(height))
        for other in found:
            if other is not face:
                place = _parted(place, middle, _middle(other))
        places.append((place[0] / width, place[1] / height, place[2] / width, place[3] / height))
    return boxes(places, size)


def _middle(face: Face) -> tuple[float, float]:
    left, top, right, bottom = face.box.tolist()
    return (left + right) / 2, (top + bottom) / 2


def _parted(place: Box, own: tuple[float, float], other: tuple[float, float]) -> Box:
    """A place without what lies beyond the middle to another's face, along the longer way of the two."""
    left, top, right, bottom = place
    across, down = (own[0] + other[0]) / 2, (own[1] + other[1]) / 2
    if abs(other[0] - own[0]) >= abs(other[1] - own[1]):
        return (left, top, min(right, across), bottom) if other[0] > own[0] else (max(left, across), top, right, bottom)
    return (left, top, right, min(bottom, down)) if other[1] > own[1] else (left, max(top, down), right, bottom)


def preview(masks: Sequence[Tensor], picture: Tensor | None = None) -> Tensor:
    """masks [1,H,W] in colours and with their numbers, over a picture [3,H,W] or over grey -> [3,H,W]."""
    height, width = masks[0].shape[-2:]
    image = torch.full((3, height, width), 0.5) if picture is None else picture
    for mask, colour in zip(masks, _colours(len(masks)), strict=True):
        image = image + TINT * mask * (torch.tensor(colour)[:, None, None] / 255 - image)
    drawn = to_pil(image)
    draw, font = ImageDraw.Draw(drawn), load_font(max(10, min(height, width) // 8))
    for number, mask in enumerate(masks, 1):
        rows, columns = (mask[0].sum(1 - axis).nonzero().flatten().float() for axis in (0, 1))
        if len(rows):
            spot = (float(columns.mean()), float(rows.mean()))
            draw.text(spot, str(number), "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return from_pil(drawn)


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
