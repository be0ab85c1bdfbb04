"""Paints what stands behind the people, and the colour tone over everything. Local units: the canvas' height is 1."""

from __future__ import annotations

import math

import numpy as np

from .draw import Array, Canvas, Color, Frame, Patch, circle, lerp, mix, smoothstep
from .parameters import BACKGROUND_COLORS, Setting

TONE_GAINS: dict[str, Color] = {"warm": (1.06, 0.99, 0.86), "cool": (0.91, 0.99, 1.07)}


def pattern_coverage(patch: Patch, setting: Setting) -> Array:
    """Where the second colour shows, 0..1."""
    period = lerp(0.13, 0.24, setting.pattern_scale)
    cos, sin = math.cos(setting.pattern_angle), math.sin(setting.pattern_angle)
    a, b = (cos * patch.u + sin * patch.v) / period, (cos * patch.v - sin * patch.u) / period
    if setting.pattern == "stripes":
        return patch.coverage((np.abs(_wave(a)) - 0.25) * period)
    if setting.pattern == "dots":
        row = np.floor(b)
        return patch.coverage(circle(_wave(a + 0.5 * (row % 2)), b - row - 0.5, 0.27) * period)
    if setting.pattern == "checks":
        sides = _wave(a / 2) * 2, _wave(b / 2) * 2
        return patch.coverage((np.abs(sides[0]) - 0.5) * period) * 0.5 + 0.5 * patch.coverage(
            (np.abs(sides[1]) - 0.5) * period
        )
    if setting.pattern == "rays":
        angle = np.arctan2(patch.v + 0.05, patch.u) + setting.pattern_angle
        radius = np.hypot(patch.u, patch.v + 0.05)
        count = round(lerp(16, 9, setting.pattern_scale))
        turn = 2 * math.pi / count
        return patch.coverage((np.abs(_wave(angle / turn)) - 0.25) * turn * radius)
    return np.zeros_like(patch.u)


def _wave(x: Array) -> Array:
    """x modulo 1, in -0.5..0.5."""
    return x - np.floor(x) - 0.5


def paint_background(canvas: Canvas, setting: Setting) -> None:
    height, width = canvas.height, canvas.width
    frame = Frame(width / 2, height / 2, height)
    half = width / height / 2
    patch = canvas.patch(frame, (-half, -0.5, half, 0.5))
    color = BACKGROUND_COLORS[setting.background]
    canvas.planes[:3] = np.asarray(color, np.float32)[:, None, None]
    if setting.pattern != "plain":
        second = mix(color, BACKGROUND_COLORS[setting.pattern_color], 0.65)
        patch.fill(pattern_coverage(patch, setting), second)
    edge = smoothstep(0.35, 1.0, np.hypot(patch.u / max(half * 1.6, 0.6), (patch.v + 0.08) / 0.85))
    patch.multiply(edge, (0.80, 0.78, 0.80))


def apply_tone(planes: Array, setting: Setting, exposure: float) -> None:
    """planes [3,H,W], changed in place: the style's colour tone, then the photo's exposure."""
    if setting.tone in TONE_GAINS:
        planes *= np.asarray(TONE_GAINS[setting.tone], np.float32)[:, None, None]
    elif setting.tone == "faded":
        grey = planes.mean(0, keepdims=True)
        planes += (grey - planes) * 0.25
        planes += (0.66 - planes) * 0.25
    planes *= exposure
    np.clip(planes, 0, 1, out=planes)
