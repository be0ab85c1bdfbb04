"""Photos of any size -> squares to train an identity on: around the face where one is found, else the middle.

Nothing of a photo is masked: SeFi-IDE has no face prior, and learns pets and things as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..faces import FaceDetector
from ..framing import Square
from ..masks import MaskOptions, prepare_portraits
from ..types import Face, MagiCaptureError, PhotoNote, Portraits

NO_NETWORKS = "no face networks to find its face, which `models get faces` gets"


def frame_photos(
    photos: Sequence[tuple[str, Tensor]], resolution: int, detector: FaceDetector | None
) -> tuple[Portraits, list[PhotoNote]]:
    """Named photos [3,H,W] -> squares of `resolution`, and a note on every photo.

    Without a detector, or where it finds no face large enough, the middle of the photo is taken, and there are no
    landmarks. The masks are white. Raises MagiCaptureError without a photo.
    """
    if not photos:
        raise MagiCaptureError("no photo is left: give at least one that can be read")
    around, notes = None, [PhotoNote(file_name=name, used=False, text=NO_NETWORKS) for name, _ in photos]
    if detector is not None:
        around, notes = prepare_portraits(photos, resolution, detector, MaskOptions())
    found = {face.source_index: place for place, face in enumerate(around.faces)} if around else {}
    squares: list[Tensor] = []
    faces: list[Face] = []
    for index, (name, image) in enumerate(photos):
        if around and index in found:
            squares.append(around.images[found[index]])
            faces.append(around.faces[found[index]])
            continue
        middle = _middle(image)
        squares.append(middle.cut(image.float().cpu(), resolution))
        box = torch.tensor([0.0, 0.0, resolution, resolution])
        faces.append(Face(box=box, source_index=index, file_name=name))
        text = f"took the photo's middle, {middle.side} pixels: {notes[index].text}"
        notes[index] = replace(notes[index], used=True, text=text)
    images = torch.stack(squares)
    return Portraits(images=images, masks=torch.ones_like(images[:, :1]), faces=faces), notes


def _middle(image: Tensor) -> Square:
    height, width = image.shape[1:]
    side = min(height, width)
    return Square(left=(width - side) // 2, top=(height - side) // 2, side=side, height=height, width=width)
