"""Paints hair and beards, in the head's units (features.py)."""

from __future__ import annotations

import numpy as np

from .draw import Array, Color, Patch, circle, ellipse, intersection, mix, scaled, smooth_union, smoothstep, union
from .features import Features, head_distance
from .parameters import HAIR_COLORS, Look

HAIR_BOX = (-1.6, -1.9, 1.6, 2.5)


def back_distance(u: Array, v: Array, f: Features, cut: str, covered: bool) -> Array:
    """Hair that hangs behind the face and the neck."""
    w = f.half_width
    cap = ellipse(u, v + 0.14, w * 1.13, 1.04)
    if cut == "short":
        return np.maximum(cap, v - 0.12)
    if cut == "tied":
        return union(np.maximum(cap, v - 0.22), circle(u, v + (0.9 if covered else 1.30), 0.40))
    if cut == "curly":
        angle = np.arctan2(u, -(v + 0.12))
        curls = np.abs(np.sin(angle * 6.5))
        return np.maximum(
            np.hypot(u / (w + 0.42), (v + 0.12) / 1.26) - 0.92 - 0.09 * curls, v - 0.98 - 0.1 * np.cos(u * 9)
        )
    length, flare = (0.98, 0.10) if cut == "medium" else (2.05, 0.20)
    half = w * 1.26 + flare * smoothstep(0.0, length, v)
    fall = np.maximum(np.abs(u) - half, v - length - 0.08 * np.cos(u * 3.0))
    return union(ellipse(u, v + 0.12, w * 1.27, 1.10), np.maximum(fall, -v - 0.12))


def hanging_edge(u: Array, v: Array, half_width: float) -> Array:
    """The outer edge of hair that hangs down: round above, straight below."""
    return union(ellipse(u, v + 0.13, half_width * 1.27, 1.08), np.maximum(np.abs(u) - half_width * 1.27, -v - 0.13))


def hairline(u: Array, f: Features, look: Look) -> Array:
    """The height v at which the front hair ends over the forehead."""
    t = u / f.half_width
    if look.fringe == "bangs":
        return f.brow_v - 0.10 + 0.10 * t * t + 0.025 * np.cos(u * 24.0)
    part = 0.0 if look.fringe == "middle" else -0.42
    near = np.where(t > part, (t - part) / (1 - part), (part - t) / (1 + part))
    drop, power = (0.34, 2.6) if look.cut in ("short", "tied") else (0.60, 1.7)
    waves = 0.04 * np.cos(u * 15.0) if look.cut == "curly" else 0.0
    return -0.76 + drop * np.clip(near, 0, 1.4) ** power + waves


def paint_strands(patch: Patch, cover: Array, color: Color, part: float, curly: bool) -> None:
    """Light and dark strands that run down from the parting, and a soft shine across them."""
    angle = np.arctan2(patch.u - part, patch.v + 1.35)
    radius = np.hypot(patch.u - part, patch.v + 1.35)
    strands = np.sin(angle * 21.0 + 1.5 * np.sin(radius * 5.0))
    fine = np.sin(angle * 57.0 + 2.0 * np.sin(radius * (3.0 if not curly else 11.0)))
    patch.fill(cover * np.clip(strands, 0, 1), scaled(color, 0.62), 0.34)
    patch.fill(cover * np.clip(fine, 0, 1), scaled(color, 0.72), 0.22)
    light = mix(color, (1.0, 0.95, 0.86), 0.42)
    patch.fill(cover * np.clip(-strands, 0, 1) * np.clip(-fine, 0, 1), light, 0.34)
    shine = np.exp(-(((radius - 0.62) / 0.17) ** 2)) * np.exp(-((angle / 1.1) ** 2))
    patch.fill(cover * shine, light, 0.40)


def paint_back_hair(patch: Patch, f: Features, look: Look, covered: bool) -> None:
    color = HAIR_COLORS[look.hair_color]
    cover = patch.coverage(back_distance(patch.u, patch.v, f, look.cut, covered))
    patch.fill(cover, scaled(color, 0.80))
    paint_strands(patch, cover, scaled(color, 0.80), 0.0, look.cut == "curly")
    inner = patch.coverage(ellipse(patch.u, patch.v - 0.75, f.half_width * 1.02, 0.8), soft=0.2)
    patch.multiply(cover * inner, (0.55, 0.52, 0.55))


def paint_front_hair(patch: Patch, f: Features, look: Look) -> None:
    """Fringe and, for longer cuts, locks beside the cheeks. Both hide the face below them."""
    u, v, w = patch.u, patch.v, f.half_width
    color = HAIR_COLORS[look.hair_color]
    over = 1.27 if look.cut in ("long", "medium") else 1.13
    top = ellipse(u, v + 0.13, w * over, 1.08 if look.cut != "curly" else 1.16)
    line = hairline(u, f, look)
    cap = np.maximum(top, (v - line) * 0.8)
    if look.cut in ("long", "medium"):
        inner = w * 0.90 + 0.08 * smoothstep(0.2, 0.9, v) + 0.14 * smoothstep(0.05, -0.5, v)
        end = 0.90 + 0.06 * np.cos(u * 5.0) if look.cut == "medium" else 1.6 - 0.25 * np.abs(u)
        lock = intersection(inner - np.abs(u), np.abs(u) - w * 1.27, -v - 0.12, v - end)
        side = intersection(top, inner - np.abs(u), -v - 0.6, v - 0.1)
        cap = np.maximum(smooth_union(cap, union(lock, side), 0.12), hanging_edge(u, v, w))
    shadow = patch.coverage((v - line) * 0.8 - 0.09, soft=0.09) * smoothstep(-0.06, -0.20, top)
    patch.multiply(shadow, (0.80, 0.70, 0.68))
    cover = patch.coverage(cap)
    patch.fill(cover, color, face=False)
    part = 0.0 if look.fringe != "side" else -0.42 * w
    paint_strands(patch, cover, color, part, look.cut == "curly")
    rim = patch.coverage(np.abs(cap) - 0.02, soft=0.03) * cover
    patch.fill(rim, scaled(color, 0.6), 0.35)


def paint_beard(patch: Patch, f: Features, mouth_open: float) -> None:
    """Beard along the jaw and a moustache, leaving the mouth free. The face below stays part of the mask."""
    u, v = patch.u, patch.v
    head = head_distance(u, v, f)
    upper = f.mouth_v - 0.16 - 0.62 * np.clip(np.abs(u) / f.half_width - 0.38, 0, 1)
    drop = 0.05 * mouth_open
    mouth = ellipse(u, v - f.mouth_v - drop, f.mouth_width * 1.12, f.lip * 2.3 + drop)
    jaw = intersection(head - 0.05, upper - v, -mouth)
    lip = intersection(ellipse(u, v - f.mouth_v + f.lip + 0.045, f.mouth_width * 1.1, 0.085), -mouth - 0.01)
    cover = patch.coverage(union(jaw, lip), soft=0.025)
    color = scaled(f.brow_color, 0.9)
    patch.fill(cover, color, 0.94)
    hairs = np.sin(u * 70.0 / np.maximum(0.6 + v, 0.1)) * np.sin(v * 31.0 + 9 * np.sin(u * 23.0))
    patch.fill(cover * np.clip(hairs, 0, 1), scaled(color, 0.6), 0.5)
    patch.fill(cover * np.clip(-hairs, 0, 1), mix(color, (1, 0.95, 0.9), 0.3), 0.35)
