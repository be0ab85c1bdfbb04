"""Eq. 7, whose face it is: a recogniser's embedding of a photo, and of the face that one UNet pass predicts.

In: a frozen recogniser, latents, landmarks. Out: embeddings that carry gradient back to the latents. No detector runs
here: a face is framed by landmarks that were stored when the photos were prepared, and of the predicted latents only
the window around that face is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .faces import ARCFACE_POINTS, invert, similarity_transform, transform, warp
from .types import Photos, Portraits

ARCFACE_SIZE = 112
MARGIN = 2  # latent cells decoded beyond what the recogniser sees: the decoder looks that far around
MAX_SIDE = (
    192  # pixels that are decoded of a face; of a larger one a smaller picture is, which is all a recogniser needs
)


class Recogniser(nn.Module):
    """A face recognition network, frozen, in eval mode.

    faces [B,3,S,S] in -1..1, S = input_size, framed as ARCFACE_POINTS are in 112 pixels -> [B,D] of unit length.
    """

    input_size: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Likeness:
    """What the people look like to a recogniser. embeddings: name -> [M,D] of the M photos with known landmarks."""

    recogniser: Recogniser
    embeddings: Mapping[str, Tensor]

    @classmethod
    def of(cls, recogniser: Recogniser, people: Photos, device: torch.device) -> Likeness:
        """Moves the recogniser to the device, where the training will need it too."""
        recogniser.to(device)
        return cls(
            recogniser=recogniser,
            embeddings={name: _embed_portraits(recogniser, portraits, device) for name, portraits in people.items()},
        )

    def targets(self, person: str, how: Literal["random", "mean", "best"], choose: Callable[[int], int]) -> Tensor:
        """Whom one item is to resemble, the nearest of: [1,D], or all [M,D] for `best`. choose(n): a number below n."""
        embeddings = self.embeddings[person]
        if how == "best" or not len(embeddings):
            return embeddings
        if how == "mean":
            return F.normalize(embeddings.mean(0, keepdim=True), dim=1)
        return embeddings[choose(len(embeddings))][None]


@torch.no_grad()
def _embed_portraits(recogniser: Recogniser, portraits: Portraits, device: torch.device) -> Tensor:
    faces = [(image, face.landmarks) for image, face in zip(portraits.images, portraits.faces, strict=False)]
    rows = [
        recogniser(align_photo(image.float(), landmarks, recogniser.input_size, device)).cpu()
        for image, landmarks in faces
        if landmarks is not None
    ]
    return torch.cat(rows) if rows else torch.empty(0, 0)


def align_photo(image: Tensor, landmarks: Tensor, size: int, device: torch.device) -> Tensor:
    """image [3,H,W] in 0..1, landmarks [5,2] in its pixels -> [1,3,size,size] in -1..1, on the device.

    Of a large photo the window around the face alone is copied. It is cut along the squares that `align` averages, so
    that these are the same as in the whole photo.
    """
    square = _reduction(recognition_frame(landmarks, size))
    rows, columns = face_window(landmarks, (image.shape[1] // square, image.shape[2] // square), square)
    corner = landmarks.new_tensor([columns.start, rows.start]) * square
    top, bottom, left, right = (edge * square for edge in (rows.start, rows.stop, columns.start, columns.stop))
    return align(image[None, :, top:bottom, left:right].to(device) * 2 - 1, landmarks - corner, size)


def align(pixel_values: Tensor, landmarks: Tensor, size: int) -> Tensor:
    """pixel_values [1,C,H,W], landmarks [5,2] in its pixels, on the CPU best -> [1,C,size,size], as a recogniser wants
    it."""
    matrix = recognition_frame(landmarks, size)
    return warp(pixel_values, matrix[None], size, shrink=_reduction(matrix))


def _reduction(matrix: Tensor) -> int:
    """Side of the squares of pixels that become one before `matrix` is applied, against aliasing."""
    return max(int(1 / float(matrix[:, :2].det().abs().sqrt())), 1)


def recognition_frame(landmarks: Tensor, size: int) -> Tensor:
    """landmarks [5,2] -> [2,3], from the picture's pixels to those of the aligned face of `size`."""
    return similarity_transform(landmarks, ARCFACE_POINTS.to(landmarks) * (size / ARCFACE_SIZE))


def face_window(landmarks: Tensor, grid: tuple[int, int], vae_factor: int, margin: int = MARGIN) -> tuple[slice, slice]:
    """Rows and columns of a grid (h, w), its cells vae_factor x vae_factor pixels, that hold all a recogniser sees of a
    face, and `margin` cells more. Of a face beyond the picture, the border's.
    """
    corners = torch.tensor([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
    cells = transform(corners, invert(recognition_frame(landmarks.cpu(), 1))) / vae_factor
    low = (cells.amin(0).floor() - margin).int().tolist()
    high = (cells.amax(0).ceil() + margin).int().tolist()
    rows = slice(min(max(low[1], 0), grid[0] - 1), max(min(high[1], grid[0]), 1))
    columns = slice(min(max(low[0], 0), grid[1] - 1), max(min(high[0], grid[1]), 1))
    return rows, columns


def embed_latents(vae: Any, recogniser: Recogniser, latents: Tensor, landmarks: Tensor, margin: int = MARGIN) -> Tensor:
    """latents [C,h,w], scaled; landmarks [5,2] in the pixels they decode to -> [1,D], with gradient to the latents."""
    vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    rows, columns = face_window(landmarks, (latents.shape[-2], latents.shape[-1]), vae_factor, margin)
    corner = landmarks.new_tensor([columns.start, rows.start]) * vae_factor
    window, scale = shrink_to(latents[None, :, rows, columns], MAX_SIDE // vae_factor)
    pixels = vae.decode(window.to(vae.dtype) / vae.config.scaling_factor).sample
    return recogniser(align(pixels, (landmarks - corner) * scale.to(landmarks), recogniser.input_size))


def shrink_to(window: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """window [1,C,h,w] -> the same by area average with no side above `cells`, and by how much it shrank, [2]: x, y."""
    height, width = window.shape[-2:]
    share = min(1.0, cells / max(height, width))
    size = (round(height * share), round(width * share))
    scale = torch.tensor([size[1] / width, size[0] / height])
    return (F.interpolate(window, size, mode="area") if share < 1 else window), scale
