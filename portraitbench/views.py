"""How the small networks look at a picture: at a face by its landmarks, at a subject by its place, past the face.

Pictures are [B,3,H,W] in 0..1, landmarks [B,5,2] in their pixels, as everywhere in the core.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture_core.faces import ARCFACE_POINTS, similarity_transform, warp
from magicapture_core.restore import FFHQ_POINTS, face_mask
from magicapture_core.small_recognisers import FACE_SIZE

WINDOW = 64  # of the pictures that the judges see
GREY = 0.5


def face_crops(images: Tensor, landmarks: Tensor) -> Tensor:
    """-> [B,3,48,48] in -1..1, framed as face recognition frames them."""
    return _aligned(images, landmarks, ARCFACE_POINTS * (FACE_SIZE / 112), FACE_SIZE)


def head_crops(images: Tensor, landmarks: Tensor) -> Tensor:
    """-> [B,3,64,64] in -1..1, wide enough for caps and earrings: FFHQ's frame, seen from a third farther away."""
    points = (FFHQ_POINTS - 256) * 0.72 + 256
    return _aligned(images, landmarks, points * (WINDOW / 512), WINDOW)


def _aligned(images: Tensor, landmarks: Tensor, points: Tensor, size: int) -> Tensor:
    matrices = torch.stack([similarity_transform(face, points.to(face)) for face in landmarks])
    return warp(images, matrices, size) * 2 - 1


def place_window(image: Tensor, index: int, count: int) -> tuple[Tensor, Tensor]:
    """The part of image [C,H,W] where subject `index` of `count` stands, as [C,64,64]; and [2,3] from the picture's
    pixels to the window's. A narrow place is widened by its own edge."""
    height, width = image.shape[-2:]
    left, right = width * index // count, width * (index + 1) // count
    side = max(height, right - left)
    gap = (side - (right - left), side - height)
    margins = (gap[0] // 2, gap[0] - gap[0] // 2, gap[1] // 2, gap[1] - gap[1] // 2)
    square = F.pad(image[None, :, :, left:right], margins, mode="replicate")
    window = F.interpolate(square, (WINDOW, WINDOW), mode="area" if side >= WINDOW else "bilinear")[0]
    scale = WINDOW / side
    shift = [(margins[0] - left) * scale, margins[2] * scale]
    return window, torch.tensor([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def hide_face(window: Tensor, landmarks: Tensor | None) -> Tensor:
    """window [3,64,64] in 0..1 -> [4,64,64]: -1..1 with a grey oval in place of the face, and that oval as the fourth
    plane. Without landmarks nothing is hidden."""
    if landmarks is None:
        hidden = torch.zeros(1, *window.shape[1:])
    else:
        matrix = similarity_transform(landmarks, FFHQ_POINTS.to(landmarks))
        hidden = (face_mask(matrix, (window.shape[1], window.shape[2])) > 0).to(window)
    return torch.cat([(window + (GREY - window) * hidden) * 2 - 1, hidden])
