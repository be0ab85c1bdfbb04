"""Paints what stands behind the people, and the colour tone over everything. Local units: the canvas' height is 1."""

from __future__ import annotations

import numpy as np

from .draw import Array, Canvas, Color, Frame, Patch, circle, lerp, mix, smoothstep
from .parameters import BACKGROUND_COLORS, Style

TONE_GAINS: dict[str, Color] = {"warm": (1.06, 0.99, 0.86), "cool": (0.91, 0.99, 1.07)}


def pattern_coverage(patch: Patch, style: Style) -> Array:
    """Where the second colour shows, 0..1."""
    period = lerp(0.13, 0.24, style.pattern_scale)
    cos, sin = np.float32(np.cos(style.pattern_angle)), np.float32(np.sin(style.pattern_angle))
    a, b = (cos * patch.u + sin * patch.v) / period, (cos * patch.v - sin * patch.u) / period
    if style.pattern == "stripes":
        return patch.coverage((np.abs(_wave(a)) - 0.25) * np.float32(period))
    if style.pattern == "dots":
        row = np.floor(b)
        return patch.coverage(circle(_wave(a + 0.5 * (row % 2)), b - row - 0.5, 0.27) * np.float32(period))
    if style.pattern == "checks":
        sides = _wave(a / 2) * 2, _wave(b / 2) * 2
        return patch.coverage((np.abs(sides[0]) - 0.5) * np.float32(period)) * 0.5 + 0.5 * patch.coverage(
            (np.abs(sides[1]) - 0.5) * np.float32(period)
        )
    if style.pattern == "rays":
        angle = np.arctan2(patch.v + 0.05, patch.u) + np.float32(style.pattern_angle)
        radius = np.hypot(patch.u, patch.v + 0.05)
        count = round(lerp(16, 9, style.pattern_scale))
        turn = np.float32(2 * np.pi / count)
        return patch.coverage((np.abs(_wave(angle / turn)) - 0.25) * turn * radius)
    return np.zeros_like(patch.u)


def _wave(x: Array) -> Array:
    """x modulo 1, in -0.5..0.5."""
    return x - np.floor(x) - np.float32(0.5)


def paint_background(canvas: Canvas, style: Style) -> None:
    height, width = canvas.height, canvas.width
    frame = Frame(width / 2, height / 2, height)
    half = width / height / 2
    patch = canvas.patch(frame, (-half, -0.5, half, 0.5))
    color = BACKGROUND_COLORS[style.background]
    canvas.planes[:3] = np.asarray(color, np.float32)[:, None, None]
    if style.pattern != "plain":
        second = mix(color, BACKGROUND_COLORS[style.pattern_color], 0.8)
        patch.fill(pattern_coverage(patch, style), second)
    edge = smoothstep(0.35, 1.0, np.hypot(patch.u / max(half * 1.6, 0.6), (patch.v + 0.08) / 0.85))
    patch.multiply(edge, (0.80, 0.78, 0.80))


def apply_tone(planes: Array, style: Style, exposure: float) -> None:
    """planes [3,H,W], changed in place: the style's colour tone, then the photo's exposure."""
    if style.tone in TONE_GAINS:
        planes *= np.asarray(TONE_GAINS[style.tone], np.float32)[:, None, None]
    elif style.tone == "faded":
        grey = planes.mean(0, keepdims=True)
        planes += (grey - planes) * np.float32(0.25)
        planes += (np.float32(0.66) - planes) * np.float32(0.25)
    planes *= np.float32(exposure)
    np.clip(planes, 0, 1, out=planes)
