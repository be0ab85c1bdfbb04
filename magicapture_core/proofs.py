"""What masks are judged by: the squares with their masks drawn over them, and a contact sheet of every photo given."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import ImageDraw, ImageOps
from torch import Tensor

from .images import from_pil, to_pil
from .parsing import CLASSES
from .sheets import contact_sheet, load_font
from .types import Face, PhotoNote, Portraits

TINT, BOX_COLOUR, POINT_COLOUR = (255, 64, 26), (60, 220, 90), (255, 230, 0)
STRENGTH = 0.45  # of the tint
PARTS = {  # what the legend calls classes of the parser, and their colours; what is no class has TINT
    "skin": (("skin",), (255, 120, 60)),
    "brows": (("l_brow", "r_brow"), (150, 75, 0)),
    "eyes": (("l_eye", "r_eye"), (0, 200, 255)),
    "glasses": (("eye_g",), (30, 60, 255)),
    "ears": (("l_ear", "r_ear"), (255, 210, 0)),
    "earring": (("ear_r",), (200, 255, 0)),
    "nose": (("nose",), (255, 0, 140)),
    "mouth": (("mouth", "u_lip", "l_lip"), (200, 0, 0)),
    "neck": (("neck",), (0, 180, 120)),
    "necklace": (("neck_l",), (0, 255, 170)),
    "cloth": (("cloth",), (120, 120, 120)),
    "hair": (("hair",), (160, 60, 255)),
    "hat": (("hat",), (90, 110, 0)),
}
GOOD, USABLE, NOT_USED = (40, 160, 70), (230, 160, 0), (210, 40, 40)
CELL = 256  # pixels of a photo on the sheet
COLUMNS = 5
LINE, NUM_LINES = 38, 4  # characters of a line of its label, and lines at most


def overlay(portraits: Portraits) -> Tensor:
    """The portraits [N,3,S,S] with their masks tinted, boxes, landmarks, and in numbers: which photo, the share that
    the mask covers, the face's height. Where a parser said what is what, in colours with a legend."""
    drawn = []
    for place, (image, mask) in enumerate(zip(portraits.images, portraits.masks, strict=True)):
        parts = None if portraits.parts is None else portraits.parts[place, 0]
        tinted = image + STRENGTH * mask * (_colours(parts, mask.shape[-1]) - image)
        face = portraits.faces[place] if portraits.faces else None
        numbers = f"photo {1 + (face.source_index if face else place)}\nmask {float(mask.mean()):.0%}"
        drawn.append(_annotate(tinted, face, numbers, _legend(parts)))
    return torch.stack(drawn)


def photo_sheet(photos: Sequence[Tensor], notes: Sequence[PhotoNote]) -> Tensor:
    """Every photo [3,H,W], used or not, with what became of it: framed green, yellow or red -> [3,H,W]."""
    cells = [_framed(photo, note) for photo, note in zip(photos, notes, strict=True)]
    return contact_sheet(cells, COLUMNS, [_label(number, note) for number, note in enumerate(notes, 1)])


def _colours(parts: Tensor | None, size: int) -> Tensor:
    """[3,S,S], the tint of each pixel"""
    table = torch.tensor(TINT).repeat(len(CLASSES), 1)
    for names, colour in PARTS.values():
        table[[CLASSES.index(name) for name in names]] = torch.tensor(colour)
    numbers = torch.zeros(size, size, dtype=torch.long) if parts is None else parts.long()
    return table[numbers].movedim(-1, 0) / 255


def _legend(parts: Tensor | None) -> list[str]:
    """Those of PARTS that are there."""
    there = set() if parts is None else {CLASSES[number] for number in parts.unique().tolist()}
    return [word for word, (names, _) in PARTS.items() if there.intersection(names)]


def _annotate(image: Tensor, face: Face | None, numbers: str, legend: Sequence[str]) -> Tensor:
    picture = to_pil(image)
    draw, line = ImageDraw.Draw(picture), max(1, picture.width // 256)
    if face is not None:
        draw.rectangle(face.box.tolist(), outline=BOX_COLOUR, width=line)
        points = [] if face.landmarks is None else face.landmarks.tolist()
        for x, y in points:
            draw.ellipse((x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line), fill=POINT_COLOUR)
        numbers += f"\nface {float(face.box[3] - face.box[1]):.0f} px"
    height = max(10, picture.width // 24)
    font = load_font(height)
    draw.multiline_text((height // 2, height // 3), numbers, "white", font, stroke_width=line, stroke_fill="black")
    for number, word in enumerate(reversed(legend)):
        spot = (height // 2, picture.height - height // 3 - number * height * 5 // 4)
        draw.text(spot, word, PARTS[word][1], font, anchor="ld", stroke_width=line, stroke_fill="white")
    return from_pil(picture)


def _framed(photo: Tensor, note: PhotoNote) -> Tensor:
    """The photo in a cell, framed in the colour of its verdict."""
    colour = (USABLE if note.warnings else GOOD) if note.used else NOT_USED
    edge = CELL // 64
    small = ImageOps.contain(to_pil(photo), (CELL - 2 * edge, CELL - 2 * edge))
    return from_pil(ImageOps.pad(ImageOps.expand(small, edge, colour), (CELL, CELL), color="white"))


def _label(number: int, note: PhotoNote) -> str:
    lines = textwrap.wrap(note.verdict, LINE, max_lines=NUM_LINES, placeholder=" ...")
    return "\n".join([f"{number}: {note.file_name}", *lines])
