"""Masks [1,H,W], 1 inside: the oval of a face, grown, and softened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .images import from_pil

Point = tuple[float, float]

SUPERSAMPLE = 4
GROW_STEP = 6  # pixels; a large disk is a small one many times over


def paint_oval(landmarks: Tensor, size: int) -> Tensor:
    """FaceMesh's landmarks [468,2] -> [1,size,size], 1 inside the line around them, with smooth edges.

    In a turned face the nose stands out of FaceMesh's own face oval; around all landmarks it does not.
    """
    large = Image.new("L", (size * SUPERSAMPLE, size * SUPERSAMPLE))
    outline = convex_hull([(float(x), float(y)) for x, y in landmarks * SUPERSAMPLE - 0.5])
    ImageDraw.Draw(large).polygon(outline, fill=255)
    return from_pil(large.reduce(SUPERSAMPLE))[:1]


def convex_hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the smallest convex polygon around the points, in turn (Andrew, 1979)."""
    ordered = sorted(set(points))
    return _chain(ordered) + _chain(ordered[::-1])


def _chain(points: Sequence[Point]) -> list[Point]:
    """One side of the hull of sorted points, without its last corner."""
    chain: list[Point] = []
    for x, y in points:
        while len(chain) > 1:
            (x1, y1), (x2, y2) = chain[-2:]
            if (x2 - x1) * (y - y1) > (y2 - y1) * (x - x1):
                break
            chain.pop()
        chain.append((x, y))
    return chain[:-1]


def grow_mask(mask: Tensor, radius: int) -> Tensor:
    """mask [1,H,W] -> every pixel takes the largest value within `radius` pixels, or the smallest where that is < 0."""
    if radius < 0:
        return 1 - grow_mask(1 - mask, -radius)
    while radius > 0:
        step = min(radius, GROW_STEP)
        mask = _dilate(mask, step)
        radius -= step
    return mask


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """mask [1,H,W] -> the largest value in a disk, row by row of the disk."""
    height, width = mask.shape[1:]
    padded = F.pad(mask, (radius,) * 4)
    rows = []
    for offset in range(-radius, radius + 1):
        half = int((radius**2 - offset**2) ** 0.5)
        strip = padded[:, radius + offset : radius + offset + height, radius - half : radius + half + width]
        rows.append(F.max_pool2d(strip, (1, 2 * half + 1), stride=1))
    return torch.stack(rows).amax(0)


def soften(mask: Tensor, width: int) -> Tensor:
    """mask [1,H,W] -> with an edge that falls over about `width` pixels: a Gaussian of sigma width / 4."""
    if not width:
        return mask
    steps = torch.arange(-width, width + 1.0)
    kernel = torch.exp(-0.5 * (steps / (width / 4)) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(mask[None], (width,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0]
