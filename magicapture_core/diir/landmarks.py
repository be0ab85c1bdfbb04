"""What a ControlNet of landmarks is shown of a face that is redrawn: its own landmarks, or in a swap another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..landmark_maps import Style, landmark_map
from ..likeness import find_face
from ..restore import FFHQ_BOX, FFHQ_POINTS, align_face
from ..types import Face, MagiCaptureError

if TYPE_CHECKING:
    from ..faces import FaceDetector

FRAMED = Face(box=FFHQ_BOX, landmarks=FFHQ_POINTS)  # where the face lies in the frame of restorers


@dataclass(frozen=True, kw_only=True, eq=False)
class Landmarks:
    """A face [1,3,S,S], framed -> its landmarks [1,3,S,S] on black. another: [1,3,S,S], a framed face whose landmarks
    are drawn in their place."""

    detector: FaceDetector
    style: Style
    another: Tensor | None = None

    def __call__(self, faces: Tensor) -> Tensor:
        face = (faces if self.another is None else self.another)[0]
        return landmark_map(self.detector.mesh(face, FRAMED), face.shape[-1], self.style)[None]


def framed(detector: FaceDetector, photo: Tensor) -> Tensor:
    """photo [3,H,W] -> its face [1,3,S,S] as `align_face` frames it. Raises MagiCaptureError where it shows none."""
    face = find_face(detector, photo)
    if face is None:
        raise MagiCaptureError("reference: no face is found in it; take a picture that shows the face from the front")
    return align_face(photo, face)[0]
