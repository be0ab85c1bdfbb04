"""Where people stand: region masks [N,1,H,W] of 0 and 1, from a few words or from the faces of a guide picture.

Regions go from left to right, and from top to bottom. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from PIL import ImageDraw
from torch import Tensor

from ..images import from_pil, load_font, to_pil
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
    """One region for each face of a guide picture, head, shoulders and what is below, never beyond the middle between
    it and its neighbours. picture: the guide's size, whose pixels the faces are in."""
    if not faces:
        raise MagiCaptureError("guide: no face is found in it; take a picture that shows them, or another layout")
    height, width = picture
    found = sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))
    middles = [float(face.box[0] + face.box[2]) / 2 for face in found]
    bounds = [0.0, *((a + b) / 2 for a, b in pairwise(middles)), float(width)]
    places = []
    for face, middle, (low, high) in zip(found, middles, pairwise(bounds), strict=True):
        left, top, right, bottom = face.box.tolist()
        reach = BESIDE * (right - left)
        above = max(top - ABOVE * (bottom - top), 0.0)
        places.append((max(middle - reach, low) / width, above / height, min(middle + reach, high) / width, 1.0))
    return boxes(places, size)


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
