"""Pictures side by side with labels, and words on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .images import BLACK, WHITE, from_pil, to_pil


def load_font(height: int) -> Any:
    """Pillow's own font, `height` pixels high."""
    return ImageFont.load_default(height)


def contact_sheet(images: Sequence[Tensor], columns: int, labels: Sequence[str] | None = None) -> Tensor:
    """Images [3,H,W] of any sizes, row by row on white, each in the middle of its cell, with the lines of its label
    below it.

    The cells have the size of the largest image. Returns [3,H,W].
    """
    if not images:
        raise ValueError("a contact sheet of no images")
    width, height = max(image.shape[2] for image in images), max(image.shape[1] for image in images)
    gap = max(2, width // 64)
    font_size = min(24, max(10, width // 20)) if labels else 0
    line_height, num_lines = font_size * 3 // 2, max((label.count("\n") + 1 for label in labels or ()), default=0)
    cell_width, cell_height = width + gap, height + gap + line_height * num_lines
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), WHITE)
    draw = ImageDraw.Draw(sheet)
    for place, image in enumerate(images):
        left, top = gap + place % columns * cell_width, gap + place // columns * cell_height
        picture = to_pil(image)
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
        if labels:
            font = load_font(font_size)
            for number, line in enumerate(labels[place].split("\n")):
                spot = (left + width // 2, top + height + font_size // 6 + number * line_height)
                draw.text(spot, shorten(line, draw, font, width), BLACK, font, anchor="ma")
    return from_pil(sheet)


def write_on(image: Tensor, text: str) -> Tensor:
    """The image [3,H,W] with a line of text in its lower left corner, white with a black rim: legible on any picture.

    Too long a text is cut.
    """
    picture = to_pil(image)
    font_size = min(32, max(10, picture.width // 20))
    draw, font, margin = ImageDraw.Draw(picture), load_font(font_size), font_size // 2
    place = margin, picture.height - margin
    text, rim = shorten(text, draw, font, picture.width - 2 * margin), max(1, font_size // 10)
    draw.text(place, text, WHITE, font, anchor="ls", stroke_width=rim, stroke_fill=BLACK)
    return from_pil(picture)


def shorten(text: str, draw: ImageDraw.ImageDraw, font: Any, width: float) -> str:
    """`text`, or as much of it as fits into `width` with an ellipsis."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
