"""Paints hair, hats and what sits on a head, in the head's units (face.py)."""

from __future__ import annotations

import numpy as np

from .draw import Array, Color, Patch, box, circle, ellipse, intersection, mix, scaled, smooth_union, smoothstep, union
from .face import Features
from .parameters import CLOTHES_COLORS, HAIR_COLORS, Style

HAIR_BOX = (-1.6, -1.9, 1.6, 2.5)
GOLD: Color = (0.95, 0.78, 0.30)


def back_distance(u: Array, v: Array, f: Features, cut: str, covered: bool) -> Array:
    """Hair that hangs behind the face and the neck."""
    w = f.half_width
    cap = ellipse(u, v + 0.14, w * 1.13, 1.04)
    if cut == "short":
        return np.maximum(cap, v - 0.12)
    if cut == "bun":
        return union(np.maximum(cap, v - 0.22), circle(u, v + (0.9 if covered else 1.30), 0.40))
    if cut == "curly":
        angle = np.arctan2(u, -(v + 0.12))
        curls = np.abs(np.sin(angle * np.float32(6.5)))
        return np.maximum(np.hypot(u / np.float32(w + 0.42), (v + 0.12) / np.float32(1.26)) - 0.92 - 0.09 * curls, v - 0.98 - 0.1 * np.cos(u * 9))
    length, flare = (0.98, 0.10) if cut == "bob" else (2.05, 0.20)
    half = np.float32(w * 1.26) + np.float32(flare) * smoothstep(0.0, length, v)
    fall = np.maximum(np.abs(u) - half, v - np.float32(length) - 0.08 * np.cos(u * np.float32(3.0)))
    return union(ellipse(u, v + 0.12, w * 1.27, 1.10), np.maximum(fall, -v - 0.12))


def top_or_fall(u: Array, v: Array, half_width: float) -> Array:
    """The outer edge of hair that hangs down: round above, straight below."""
    return union(ellipse(u, v + 0.13, half_width * 1.27, 1.08), np.maximum(np.abs(u) - half_width * np.float32(1.27), -v - 0.13))


def hairline(u: Array, f: Features, style: Style) -> Array:
    """The height v at which the front hair ends over the forehead."""
    t = u / np.float32(f.half_width)
    if style.fringe == "bangs":
        return np.float32(f.brow_v - 0.10) + 0.10 * t * t + 0.025 * np.cos(u * np.float32(24.0))
    part = 0.0 if style.fringe == "middle" else -0.42
    near = np.where(t > part, (t - part) / (1 - part), (part - t) / (1 + part))
    drop, power = (0.34, 2.6) if style.cut in ("short", "bun") else (0.60, 1.7)
    waves = 0.04 * np.cos(u * np.float32(15.0)) if style.cut == "curly" else 0.0
    return -0.76 + drop * np.clip(near, 0, 1.4) ** np.float32(power) + waves


def paint_strands(patch: Patch, cover: Array, color: Color, part: float, curly: bool) -> None:
    """Light and dark strands that run down from the parting, and a soft shine across them."""
    angle = np.arctan2(patch.u - np.float32(part), patch.v + np.float32(1.35))
    radius = np.hypot(patch.u - np.float32(part), patch.v + np.float32(1.35))
    strands = np.sin(angle * np.float32(21.0) + 1.5 * np.sin(radius * np.float32(5.0)))
    fine = np.sin(angle * np.float32(57.0) + 2.0 * np.sin(radius * np.float32(3.0 if not curly else 11.0)))
    patch.fill(cover * np.clip(strands, 0, 1), scaled(color, 0.62), 0.34)
    patch.fill(cover * np.clip(fine, 0, 1), scaled(color, 0.72), 0.22)
    light = mix(color, (1.0, 0.95, 0.86), 0.42)
    patch.fill(cover * np.clip(-strands, 0, 1) * np.clip(-fine, 0, 1), light, 0.34)
    shine = np.exp(-(((radius - np.float32(0.62)) / 0.17) ** 2)) * np.exp(-((angle / 1.1) ** 2))
    patch.fill(cover * shine, light, 0.40)


def paint_back_hair(patch: Patch, f: Features, style: Style, covered: bool) -> None:
    color = HAIR_COLORS[style.hair_color]
    cover = patch.coverage(back_distance(patch.u, patch.v, f, style.cut, covered))
    patch.fill(cover, scaled(color, 0.80))
    paint_strands(patch, cover, scaled(color, 0.80), 0.0, style.cut == "curly")
    inner = patch.coverage(ellipse(patch.u, patch.v - 0.75, f.half_width * 1.02, 0.8), soft=0.2)
    patch.multiply(cover * inner, (0.55, 0.52, 0.55))


def paint_front_hair(patch: Patch, f: Features, style: Style) -> None:
    """Fringe and, for longer cuts, locks beside the cheeks. Both hide the face below them."""
    u, v, w = patch.u, patch.v, f.half_width
    color = HAIR_COLORS[style.hair_color]
    over = 1.27 if style.cut in ("long", "bob") else 1.13
    top = ellipse(u, v + 0.13, w * over, 1.08 if style.cut != "curly" else 1.16)
    line = hairline(u, f, style)
    cap = np.maximum(top, (v - line) * np.float32(0.8))
    if style.cut in ("long", "bob"):
        inner = w * np.float32(0.90) + 0.08 * smoothstep(0.2, 0.9, v) + 0.14 * smoothstep(0.05, -0.5, v)
        end = 0.90 + 0.06 * np.cos(u * np.float32(5.0)) if style.cut == "bob" else 1.6 - 0.25 * np.abs(u)
        lock = intersection(inner - np.abs(u), np.abs(u) - w * np.float32(1.27), -v - 0.12, v - end)
        side = intersection(top, inner - np.abs(u), -v - 0.6, v - 0.1)
        cap = np.maximum(smooth_union(cap, union(lock, side), 0.12), top_or_fall(u, v, w))
    shadow = patch.coverage((v - line) * 0.8 - 0.09, soft=0.09) * smoothstep(-0.06, -0.20, top)
    patch.multiply(shadow, (0.80, 0.70, 0.68))
    cover = patch.coverage(cap)
    patch.fill(cover, color, face=False)
    part = 0.0 if style.fringe != "side" else -0.42 * w
    paint_strands(patch, cover, color, part, style.cut == "curly")
    rim = patch.coverage(np.abs(cap) - 0.02, soft=0.03) * cover
    patch.fill(rim, scaled(color, 0.6), 0.35)


def paint_hat(patch: Patch, f: Features, style: Style) -> None:
    color = CLOTHES_COLORS[style.hat_color]
    if style.hat == "hat":
        paint_brimmed_hat(patch, f, color)
    elif style.hat == "beanie":
        paint_beanie(patch, f, color)


def paint_brimmed_hat(patch: Patch, f: Features, color: Color) -> None:
    u, v, w = patch.u, patch.v, f.half_width
    crown = box(u, v + 1.13, w * (1.0 + 0.0), 0.50, 0.24)
    cover = patch.coverage(crown)
    patch.fill(cover, color, face=False)
    patch.fill(cover * smoothstep(0.1, 0.9, -u), scaled(color, 0.7), 0.35)
    patch.fill(cover * patch.coverage(np.abs(v + 0.79) - 0.09), scaled(color, 0.45))
    brim = ellipse(u, v + 0.68 - 0.10 * (u / w) ** 2, w * 1.85, 0.13)
    patch.fill(patch.coverage(brim + 0.0), scaled(color, 0.86), face=False)
    patch.fill(patch.coverage(np.abs(brim) - 0.012), scaled(color, 0.6), 0.6)


def paint_beanie(patch: Patch, f: Features, color: Color) -> None:
    u, v, w = patch.u, patch.v, f.half_width
    dome = np.maximum(ellipse(u, v + 0.42, w * 1.20, 0.98), v + 0.60)
    cover = patch.coverage(union(dome, circle(u, v + 1.42, 0.20)))
    patch.fill(cover, color, face=False)
    ribs = np.abs(np.sin(u * np.float32(15.0) / (0.35 + np.clip(-v, 0, 1.4))))
    patch.fill(cover * smoothstep(0.35, 0.0, ribs), scaled(color, 0.7), 0.5)
    band = box(u, v + 0.58 - 0.05 * (u / w) ** 2, w * 1.22, 0.16, 0.08)
    band_cover = patch.coverage(band)
    patch.fill(band_cover, mix(color, (1, 1, 1), 0.14), face=False)
    patch.fill(band_cover * smoothstep(0.3, 0.0, np.abs(np.sin(u * np.float32(22.0)))), scaled(color, 0.65), 0.5)


def paint_cap(patch: Patch, f: Features, color: Color) -> None:
    """A baseball cap: dome, button and a peak over the forehead."""
    u, v, w = patch.u, patch.v, f.half_width
    dome = np.maximum(ellipse(u, v + 0.46, w * 1.17, 0.76), v + 0.52)
    cover = patch.coverage(dome)
    patch.fill(cover, color, face=False)
    seams = union(np.abs(u), np.abs(np.abs(u) - 0.62 * np.sqrt(np.clip(1 - ((v + 0.5) / 0.72) ** 2, 0, 1)) * w))
    patch.fill(cover * patch.coverage(seams - 0.008, soft=0.012), scaled(color, 0.6), 0.6)
    patch.fill(patch.coverage(ellipse(u, v + 1.22, 0.08, 0.035)), scaled(color, 0.7))
    peak = intersection(ellipse(u, v + 0.55, w * 1.12, 0.26), -0.62 - v + 0.10 * (u / w) ** 2)
    patch.fill(patch.coverage(peak), scaled(color, 0.72), face=False)
    patch.fill(patch.line(peak, 0.025), scaled(color, 0.5), 0.7)


def paint_beard(patch: Patch, f: Features, mouth_open: float) -> None:
    """Beard along the jaw and a moustache, leaving the mouth free. The face below stays part of the mask."""
    from .face import head_distance

    u, v = patch.u, patch.v
    head = head_distance(u, v, f)
    upper = f.mouth_v - 0.16 - 0.62 * np.clip(np.abs(u) / np.float32(f.half_width) - 0.38, 0, 1)
    drop = 0.05 * mouth_open
    mouth = ellipse(u, v - f.mouth_v - drop, f.mouth_width * 1.12, f.lip * 2.3 + drop)
    jaw = intersection(head - 0.05, upper - v, -mouth)
    lip = intersection(ellipse(u, v - f.mouth_v + f.lip + 0.045, f.mouth_width * 1.1, 0.085), -mouth - 0.01)
    cover = patch.coverage(union(jaw, lip), soft=0.025)
    color = scaled(f.brow_color, 0.9)
    patch.fill(cover, color, 0.94)
    hairs = np.sin(u * np.float32(70.0) / (0.6 + v)) * np.sin(v * np.float32(31.0) + 9 * np.sin(u * np.float32(23.0)))
    patch.fill(cover * np.clip(hairs, 0, 1), scaled(color, 0.6), 0.5)
    patch.fill(cover * np.clip(-hairs, 0, 1), mix(color, (1, 0.95, 0.9), 0.3), 0.35)


def paint_glasses(patch: Patch, f: Features) -> None:
    u, v = np.abs(patch.u), patch.v - f.eye_v - 0.01
    half = min(f.eye_width + 0.075, f.eye_u - 0.035)
    rim = box(u - f.eye_u, v, half, 0.195, 0.11)
    lens = patch.coverage(rim)
    patch.fill(lens, (0.80, 0.90, 0.97), 0.16)
    streak = np.abs(patch.u - np.sign(patch.u) * np.float32(f.eye_u) + patch.v * 0.8) - 0.035
    patch.fill(lens * patch.coverage(streak, soft=0.01), (1, 1, 1), 0.20)
    bridge = intersection(np.abs(v + 0.05 - 0.6 * (0.1 - u) ** 2) - 0.02, u - (f.eye_u - half))
    temple = intersection(np.abs(v + 0.06) - 0.02, f.eye_u + half - u, u - f.half_width)
    frame = patch.coverage(union(np.abs(rim) - 0.024, bridge, temple))
    patch.fill(frame, (0.10, 0.09, 0.11), 0.96)


def paint_earrings(patch: Patch, f: Features) -> None:
    u, v = np.abs(patch.u) - f.half_width * 0.99, patch.v - f.eye_v - 0.14 - f.ear * 1.25
    ring = np.abs(circle(u, v - 0.10, 0.085)) - 0.026
    patch.fill(patch.coverage(ring), GOLD, face=False)
    patch.fill(patch.coverage(circle(u - 0.05, v - 0.05, 0.022)), (1.0, 0.96, 0.80))
