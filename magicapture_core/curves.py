"""Curves over the steps of a training, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from .images import BLACK, WHITE, from_pil
from .sheets import load_font

COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
NUM_GRID_LINES = 4
SMOOTHING = 0.95  # share that a step keeps of the running mean


def draw_curves(series: Mapping[str, Sequence[float]], size: tuple[int, int] = (768, 384)) -> Tensor:
    """One curve per name over 1, 2, ... steps -> [3,H,W]; `size` is (W, H). Pale: the values; bold: their running mean.

    Values that are not finite are left out.
    """
    scale = 2  # drawn twice as large, then reduced: smooth lines
    canvas = Image.new("RGB", (size[0] * scale, size[1] * scale), WHITE)
    draw, font = ImageDraw.Draw(canvas), load_font(12 * scale)
    box = (64 * scale, 28 * scale, (size[0] - 12) * scale, (size[1] - 24) * scale)
    finite = [value for values in series.values() for value in values if np.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    high = high if high > low else low + 1.0
    num_steps = max((len(values) for values in series.values()), default=0)
    _draw_grid(draw, box, (low, high), num_steps, font)
    curves = [(name, values, COLOURS[n % len(COLOURS)]) for n, (name, values) in enumerate(series.items())]
    for _, values, colour in curves:  # all pale ones first, so that none hides a bold one
        pale = tuple((channel + 3 * 255) // 4 for channel in colour)
        draw.line(_curve_points(values, box, (low, high), num_steps), pale, scale)
    legend_left = float(box[0])
    for name, values, colour in curves:
        draw.line(_curve_points(running_mean(values), box, (low, high), num_steps), colour, 2 * scale)
        draw.text((legend_left, 6 * scale), name, colour, font)
        legend_left += draw.textlength(name + "   ", font)
    return from_pil(canvas.resize(size, Image.Resampling.LANCZOS))


def running_mean(values: Sequence[float]) -> list[float]:
    """Exponential running mean without a bias to its start; a value that is not finite is not counted."""
    means: list[float] = []
    total = weight = 0.0
    for value in values:
        if np.isfinite(value):
            total, weight = SMOOTHING * total + value, SMOOTHING * weight + 1
        means.append(total / weight if weight else float("nan"))
    return means


def _curve_points(
    values: Sequence[float], box: tuple[int, int, int, int], limits: tuple[float, float], num_steps: int
) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    low, high = limits
    across = (right - left) / max(num_steps - 1, 1)
    return [
        (left + step * across, bottom - (value - low) / (high - low) * (bottom - top))
        for step, value in enumerate(values)
        if np.isfinite(value)
    ]


def _draw_grid(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], limits: tuple[float, float], num_steps: int, font: Any
) -> None:
    left, top, right, bottom = box
    for line in range(NUM_GRID_LINES + 1):
        share = line / NUM_GRID_LINES
        height = bottom - share * (bottom - top)
        draw.line([(left, height), (right, height)], (220, 220, 220), 1)
        draw.text((left - 8, height), f"{limits[0] + share * (limits[1] - limits[0]):.3g}", BLACK, font, anchor="rm")
    draw.text((left, bottom + 6), "1", BLACK, font, anchor="ma")
    draw.text((right, bottom + 6), str(num_steps), BLACK, font, anchor="ra")
