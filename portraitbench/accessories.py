"""Paints what is worn on a head: hats, caps, glasses and earrings, in the head's units (features.py)."""

from __future__ import annotations

import numpy as np

from .draw import Color, Patch, box, circle, ellipse, intersection, mix, scaled, smoothstep, union
from .features import Features
from .parameters import CLOTHES_COLORS, Look

GOLD: Color = (0.95, 0.78, 0.30)


def paint_hat(patch: Patch, half_width: float, look: Look) -> None:
    color = CLOTHES_COLORS[look.hat_color]
    if look.hat == "hat":
        paint_brimmed_hat(patch, half_width, color)
    elif look.hat == "beanie":
        paint_beanie(patch, half_width, color)


def paint_brimmed_hat(patch: Patch, w: float, color: Color) -> None:
    u, v = patch.u, patch.v
    crown = box(u, v + 1.13, w, 0.50, 0.24)
    cover = patch.coverage(crown)
    patch.fill(cover, color, face=False)
    patch.fill(cover * smoothstep(0.1, 0.9, -u), scaled(color, 0.7), 0.35)
    patch.fill(cover * patch.coverage(np.abs(v + 0.79) - 0.09), scaled(color, 0.45))
    brim = ellipse(u, v + 0.68 - 0.10 * (u / w) ** 2, w * 1.62, 0.13)
    patch.fill(patch.coverage(brim), scaled(color, 0.86), face=False)
    patch.fill(patch.coverage(np.abs(brim) - 0.012), scaled(color, 0.6), 0.6)


def paint_beanie(patch: Patch, w: float, color: Color) -> None:
    u, v = patch.u, patch.v
    dome = np.maximum(ellipse(u, v + 0.42, w * 1.20, 0.98), v + 0.60)
    cover = patch.coverage(union(dome, circle(u, v + 1.42, 0.20)))
    patch.fill(cover, color, face=False)
    ribs = np.abs(np.sin(u * 15.0 / (0.35 + np.clip(-v, 0, 1.4))))
    patch.fill(cover * smoothstep(0.35, 0.0, ribs), scaled(color, 0.7), 0.5)
    band = box(u, v + 0.58 - 0.05 * (u / w) ** 2, w * 1.22, 0.16, 0.08)
    band_cover = patch.coverage(band)
    patch.fill(band_cover, mix(color, (1, 1, 1), 0.14), face=False)
    patch.fill(band_cover * smoothstep(0.3, 0.0, np.abs(np.sin(u * 22.0))), scaled(color, 0.65), 0.5)


def paint_cap(patch: Patch, w: float, color: Color) -> None:
    """A baseball cap: dome, button and a peak over the forehead."""
    u, v = patch.u, patch.v
    dome = np.maximum(ellipse(u, v + 0.46, w * 1.17, 0.76), v + 0.52)
    cover = patch.coverage(dome)
    patch.fill(cover, color, face=False)
    seams = union(np.abs(u), np.abs(np.abs(u) - 0.62 * np.sqrt(np.clip(1 - ((v + 0.5) / 0.72) ** 2, 0, 1)) * w))
    patch.fill(cover * patch.coverage(seams - 0.008, soft=0.012), scaled(color, 0.6), 0.6)
    patch.fill(patch.coverage(ellipse(u, v + 1.22, 0.08, 0.035)), scaled(color, 0.7))
    peak = intersection(ellipse(u, v + 0.55, w * 1.12, 0.26), -0.62 - v + 0.10 * (u / w) ** 2)
    patch.fill(patch.coverage(peak), scaled(color, 0.72), face=False)
    patch.fill(patch.line(peak, 0.025), scaled(color, 0.5), 0.7)


def paint_glasses(patch: Patch, f: Features) -> None:
    u, v = np.abs(patch.u), patch.v - f.eye_v - 0.01
    half = min(f.eye_width + 0.075, f.eye_u - 0.035)
    rim = box(u - f.eye_u, v, half, 0.195, 0.11)
    lens = patch.coverage(rim)
    patch.fill(lens, (0.80, 0.90, 0.97), 0.16)
    streak = np.abs(patch.u - np.sign(patch.u) * f.eye_u + patch.v * 0.8) - 0.035
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
