"""IMAGE, MASK and FACES sockets -> one side of the training set; the face networks where ComfyUI keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..magicapture_core.types import Face, MagiCaptureError, Portraits
from .folders import models_folders, other_models
from .sockets import masks_to_core, to_core


def face_detector(required: bool = True) -> Any:
    """The face networks from ComfyUI's model folders; None where they are missing and not needed."""
    from ..magicapture_core.faces import load_face_detector
    from ..magicapture_core.models import FACE_NETS, find_model

    try:
        folder = find_model(f"faces/{FACE_NETS[0]}.npz", models_folders()).parents[1]
    except MagiCaptureError:
        if required:
            raise
        return None
    return load_face_detector(folder)


def likeness_judge(
    face_recognition: Any, reference: Sequence[Tensor] | None
) -> Callable[[Tensor], list[float | None]] | None:
    """IMAGE -> the likeness of each picture to the reference, None where it shows no face. None unless both are there.

    reference: IMAGE batches.

    On the CPU: a face takes about a tenth of a second there, and no memory of the graphics card. Raises
    MagiCaptureError, before anything is made, for one socket without the other and for a reference without a face.
    """
    from ..magicapture_core.likeness import find_face, likeness_to

    if face_recognition is None and not reference:
        return None
    if face_recognition is None or not reference:
        lacking = "face_recognition" if face_recognition is None else "reference"
        raise MagiCaptureError(f"{lacking}: likeness needs face_recognition and reference; connect both, or neither")
    detector = face_detector()
    photos = [photo for batch in reference for photo in to_core(batch)]
    likeness = likeness_to(face_recognition, detector, photos)

    def judge(images: Tensor) -> list[float | None]:
        found = [(image, find_face(detector, image)) for image in to_core(images)]
        return [None if face is None else likeness(image, face) for image, face in found]

    return judge


def face_parser() -> Any:
    """BiSeNet, where the user has put its weights."""
    from ..magicapture_core.parsing import load_face_parser

    return load_face_parser([*other_models("facedetection"), *other_models("facerestore_models"), *models_folders()])


def to_portraits(
    name: str, images: Tensor, masks: Tensor, faces: list[Face] | None, resolution: int
) -> tuple[Portraits, list[str]]:
    """One person or style at the training's resolution, and notes on what was changed or looked up.

    Raises MagiCaptureError when pictures, masks and faces do not belong together or the pictures are not square.
    """
    from ..magicapture_core.images import resize

    pictures, face_masks = to_core(images), masks_to_core(masks)
    height, width = pictures.shape[-2:]
    if height != width:
        raise MagiCaptureError(f"{name}_images: {width} x {height} is not square; put a Face Mask node in between")
    if face_masks.shape[-2:] != (height, width) or len(face_masks) != len(pictures):
        raise MagiCaptureError(
            f"{name}_masks: {len(face_masks)} masks of {face_masks.shape[-1]} x {face_masks.shape[-2]} for "
            f"{len(pictures)} images of {width} x {height}; connect images and masks of the same Face Mask node"
        )
    notes = []
    if height != resolution:
        pictures = resize(pictures, (resolution, resolution))
        face_masks = resize(face_masks, (resolution, resolution))
        notes.append(f"{name}: scaled from {height} to the settings' resolution of {resolution} pixels")
    if faces is None:
        found, note = _detect(name, pictures)
        notes.append(note)
    else:
        found = [_scaled(face, resolution / height) for face in faces]
        if len(found) != len(pictures):
            raise MagiCaptureError(
                f"{name}_faces: {len(found)} faces for {len(pictures)} images; connect FACES of the same Face Mask "
                "node, or nothing"
            )
    return Portraits(images=pictures, masks=face_masks, faces=found), notes


def to_squares(
    images: Sequence[Tensor], faces: list[Face] | None, resolution: int, detector: Any
) -> tuple[Portraits, list[str]]:
    """IMAGE batches of any sizes -> squares of the resolution with white masks, and notes on what was cut out of each.

    faces: of a Face Mask node, whose squares are taken as they are. Raises MagiCaptureError where they are not its.
    """
    from ..magicapture_core.images import resize
    from ..magicapture_core.sefi.photos import frame_photos

    pictures = [picture for batch in images for picture in to_core(batch)]
    if faces is None:
        named = [(f"photo {number}", picture) for number, picture in enumerate(pictures, 1)]
        portraits, notes = frame_photos(named, resolution, detector)
        return portraits, [str(note) for note in notes]
    if len(faces) != len(pictures) or any(picture.shape[1] != picture.shape[2] for picture in pictures):
        raise MagiCaptureError(
            f"faces: they belong to {len(faces)} square pictures, and images are others; connect images and FACES of "
            "the same Face Mask node, or no faces"
        )
    squares = torch.cat([resize(picture[None], (resolution, resolution)) for picture in pictures])
    scaled = [_scaled(face, resolution / picture.shape[-1]) for face, picture in zip(faces, pictures, strict=True)]
    return Portraits(images=squares, masks=torch.ones_like(squares[:, :1]), faces=scaled), []


def _detect(name: str, pictures: Tensor) -> tuple[list[Face], str]:
    """The face of every picture; none at all unless every picture has one."""
    from ..magicapture_core.faces import choose_face

    detector = face_detector(required=False)
    if detector is None:
        return [], f"{name}: FACES not connected and no face networks; the masks alone say where the faces are"
    size = pictures.shape[-1]
    found = [detector.detect(picture) for picture in pictures]
    if not all(found):
        return [], f"{name}: FACES not connected, and not every picture shows a face; the masks alone count"
    faces = [candidates[choose_face(candidates, size, size)] for candidates in found]
    return faces, f"{name}: FACES not connected, so the faces were looked for again"


def _scaled(face: Face, scale: float) -> Face:
    landmarks = None if face.landmarks is None else face.landmarks * scale
    return replace(face, box=face.box * scale, landmarks=landmarks)
