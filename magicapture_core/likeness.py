"""How much a face is somebody's, in the eyes of a recogniser, and whose faces a training can compare at all.

In: pictures, and faces that were found in them. Out: cosines, or words on what could not be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .faces import FaceDetector, choose_face
from .identity import Recogniser, align_photo
from .types import Face, MagiCaptureError, Photos, Portraits


@torch.no_grad()
def similarity(
    recogniser: Recogniser, detector: FaceDetector, images: Sequence[Tensor], references: Sequence[Tensor]
) -> list[float | None]:
    """CSIM of each image: the mean cosine, -1..1, of its face to the references' faces; None where it shows no face.

    images, references: [3,H,W] in 0..1, of any sizes. Of several faces the one that `choose_face` takes counts.
    Raises MagiCaptureError when no reference shows a face.
    """
    likeness = likeness_to(recogniser, detector, references)
    found = [(image, find_face(detector, image)) for image in images]
    return [None if face is None else likeness(image, face) for image, face in found]


@torch.no_grad()
def likeness_to(
    recogniser: Recogniser, detector: FaceDetector, references: Sequence[Tensor]
) -> Callable[[Tensor, Face], float]:
    """The CSIM of one face in a picture [3,H,W], framed by its landmarks, as a function. See `similarity`."""
    known = [embeds for image in references if (embeds := embed_face(recogniser, detector, image)) is not None]
    if not known:
        raise MagiCaptureError("reference: no face is found in it; take a picture that shows the face from the front")
    mean_embeds = torch.cat(known).mean(0)

    @torch.no_grad()
    def likeness(image: Tensor, face: Face) -> float:
        return float(embed(recogniser, image, face)[0] @ mean_embeds)

    return likeness


def ranked(scores: Sequence[float | None]) -> list[int]:
    """The places of the scores, the most alike first; those without a face come last, equals stay in their order."""
    return sorted(range(len(scores)), key=lambda place: (scores[place] is None, -(scores[place] or 0)))


def embed_face(recogniser: Recogniser, detector: FaceDetector, image: Tensor) -> Tensor | None:
    """[1,D] of unit length, where the recogniser is; None without a face. image: [3,H,W] in 0..1."""
    face = find_face(detector, image)
    return None if face is None else embed(recogniser, image, face)


def find_face(detector: FaceDetector, image: Tensor) -> Face | None:
    """The face that a picture [3,H,W] is about."""
    faces = detector.detect(image)
    return faces[choose_face(faces, image.shape[1], image.shape[2])] if faces else None


def embed(recogniser: Recogniser, image: Tensor, face: Face) -> Tensor:
    """[1,D] of unit length, where the recogniser is. face: with landmarks, as a detector's faces have them."""
    assert face.landmarks is not None
    device = next(recogniser.parameters()).device
    return recogniser(align_photo(image, face.landmarks, recogniser.input_size, device))


def check_targets(photos: Photos) -> list[str]:
    """Notes on the photos that the identity loss leaves out, because nobody knows where in them the face lies.

    Raises MagiCaptureError when a person or style has no photo left: the loss would silently be none.
    """
    return [note for name, portraits in photos.items() for note in _check_concept(name, portraits)]


def _check_concept(name: str, portraits: Portraits) -> list[str]:
    known = {number for number, face in enumerate(portraits.faces) if face.landmarks is not None}
    if not known:
        raise MagiCaptureError(
            f"identity loss: no {name} photo has a face with known landmarks; give photos in which a face is found, or "
            "leave the face recogniser out"
        )
    left_out = [str(number + 1) for number in range(len(portraits)) if number not in known]
    if not left_out:
        return []
    return [f"{name}: the identity loss leaves out photo {', '.join(left_out)}, whose face was not found"]
