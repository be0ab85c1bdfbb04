"""Paints neck, shoulders and what is worn on them. Local units as in features.py, upright: the chin near v = 1."""

from __future__ import annotations

import numpy as np

from .draw import (
    Array,
    Color,
    Patch,
    box,
    circle,
    ellipse,
    intersection,
    mix,
    polygon,
    scaled,
    segment,
    sign,
    smooth_union,
    smoothstep,
    union,
)
from .features import Features
from .parameters import CLOTHES_COLORS, Look, Nuisance

BODY_BOX = (-2.2, 0.4, 2.2, 7.0)
SHIRT_WHITE: Color = (0.95, 0.95, 0.94)


def body_distance(u: Array, v: Array) -> Array:
    """Shoulders and chest: a rounded block, and the slope from the neck down to it."""
    a, b = np.abs(u) / 1.55, np.minimum(v - 3.4, 0) / 1.86
    chest = (np.cbrt(a * a * a - b * b * b) - 1) * 1.5
    slope = polygon(u, v, [(-0.36, 1.10), (0.36, 1.10), (0.85, 1.66), (0.85, 2.2), (-0.85, 2.2), (-0.85, 1.66)])
    return smooth_union(chest, slope, 0.5)


def paint_neck(patch: Patch, f: Features) -> None:
    """Neck, shoulders and chest in skin; clothes follow."""
    u, v = patch.u, patch.v
    half = 0.34 + 0.10 * smoothstep(1.0, 1.5, v)
    neck = intersection(np.abs(u) - half, 0.45 - v, v - 1.7)
    cover = patch.coverage(smooth_union(neck, body_distance(u, v), 0.12))
    patch.fill(cover, scaled(f.skin, 0.94))
    shadow = patch.coverage(ellipse(u, v - f.chin + 0.02, f.half_width * 0.85, 0.36), soft=0.10)
    patch.fill(cover * shadow, f.shadow, 0.72)
    bone = patch.coverage(segment(np.abs(u), v, (0.12, 1.62), (0.62, 1.50)) - 0.02, soft=0.03)
    patch.fill(cover * bone, f.shadow, 0.35)


def neck_hole(u: Array, v: Array, garment: str) -> Array:
    """The opening of a garment."""
    if garment == "dress":
        return ellipse(u, v - 1.18, 0.74, 0.66)
    return ellipse(u, v - 1.16, 0.42, 0.27)


def paint_clothes(patch: Patch, look: Look, nuisance: Nuisance) -> None:
    u, v = patch.u, patch.v
    color = CLOTHES_COLORS[look.clothes_color]
    if look.garment == "hoodie":
        hood = ellipse(u, v - 1.30, 0.92, 0.50)
        patch.fill(patch.coverage(np.maximum(hood, -neck_hole(u, v, "hoodie"))), scaled(color, 0.72))
    body = np.maximum(body_distance(u, v), -neck_hole(u, v, look.garment))
    cover = patch.coverage(body)
    patch.fill(cover, color)
    side = sign(nuisance.light_side)
    patch.multiply(cover * smoothstep(0.2, 1.7, -u * side), (0.70, 0.68, 0.74), 0.8 * nuisance.light_strength)
    patch.multiply(cover * smoothstep(0.3, 1.5, u * side) * smoothstep(2.6, 1.6, v), (1.12, 1.10, 1.06), 0.7)
    arm = np.abs(np.abs(u) - 1.13 + 0.05 * np.sin(v * 2.0))
    patch.multiply(cover * patch.coverage(np.maximum(arm - 0.015, 2.15 - v), soft=0.05), (0.72, 0.70, 0.74))
    painters = {
        "suit": paint_suit,
        "shirt": paint_shirt,
        "sweater": paint_sweater,
        "hoodie": paint_hoodie,
        "dress": paint_dress,
    }
    painters[look.garment](patch, color, cover)
    paint_neckwear(patch, look)


def paint_suit(patch: Patch, color: Color, cover: Array) -> None:
    u, v = np.abs(patch.u), patch.v
    opening = polygon(u, v, [(-0.5, 1.10), (0.36, 1.10), (0.46, 1.32), (0.0, 2.70), (-0.5, 2.7)])
    front = patch.coverage(opening) * cover
    patch.fill(front, SHIRT_WHITE)
    lapel = polygon(u, v, [(0.40, 1.16), (0.62, 1.42), (0.70, 1.95), (0.02, 2.78), (0.02, 2.62)])
    patch.fill(patch.coverage(lapel), mix(color, (1, 1, 1), 0.10))
    patch.fill(patch.line(lapel, 0.022), scaled(color, 0.55), 0.8)
    notch = segment(u, v, (0.62, 1.72), (0.40, 1.78))
    patch.fill(patch.coverage(notch - 0.012), scaled(color, 0.55), 0.8)
    paint_collar(patch, SHIRT_WHITE)
    middle = intersection(np.abs(patch.u) - 0.010, 2.75 - v)
    patch.fill(patch.coverage(middle), scaled(color, 0.55))
    for at in (3.0, 3.6):
        patch.fill(patch.coverage(circle(patch.u - 0.09, v - at, 0.045)), scaled(color, 0.5))


def paint_collar(patch: Patch, color: Color) -> None:
    u, v = np.abs(patch.u), patch.v
    wing = polygon(u, v, [(0.36, 1.06), (0.50, 1.34), (0.34, 1.66), (0.04, 1.44)])
    patch.fill(patch.coverage(wing), mix(color, (1, 1, 1), 0.18))
    patch.fill(patch.line(wing, 0.022), scaled(color, 0.62), 0.7)


def paint_shirt(patch: Patch, color: Color, cover: Array) -> None:
    u, v = patch.u, patch.v
    placket = intersection(np.abs(u) - 0.10, 1.42 - v)
    patch.fill(patch.line(placket, 0.018), scaled(color, 0.72), 0.7)
    for at in (1.85, 2.35, 2.85, 3.35):
        patch.fill(patch.coverage(circle(u, v - at, 0.042)), mix(scaled(color, 0.6), (1, 1, 1), 0.45))
    paint_collar(patch, color)


def paint_sweater(patch: Patch, color: Color, cover: Array) -> None:
    u, v = patch.u, patch.v
    knit = np.abs(np.sin(u * 13.0)) * np.abs(np.sin(v * 12.0 + np.abs(np.sin(u * 13.0))))
    patch.multiply(cover * knit, (0.80, 0.79, 0.80), 0.4)
    ring = np.abs(ellipse(u, v - 1.12, 0.43, 0.36)) - 0.075
    band = np.maximum(ring, 1.04 - v)
    band_cover = patch.coverage(band)
    patch.fill(band_cover, mix(color, (1, 1, 1), 0.14))
    ribs = np.abs(np.sin(np.arctan2(u, v - 0.9) * 16.0))
    patch.multiply(band_cover * smoothstep(0.35, 0.0, ribs), (0.68, 0.67, 0.70))


def paint_hoodie(patch: Patch, color: Color, cover: Array) -> None:
    u, v = np.abs(patch.u), patch.v
    edge = np.maximum(np.abs(ellipse(u, v - 1.20, 0.54, 0.42)) - 0.10, 1.15 - v)
    patch.fill(patch.coverage(edge), scaled(color, 0.84))
    patch.fill(patch.line(edge, 0.02), scaled(color, 0.6), 0.7)
    string = segment(u, v, (0.22, 1.62), (0.26, 2.25)) - 0.022
    patch.fill(patch.coverage(string), mix(color, (1, 1, 1), 0.75))
    pocket = box(u, v - 3.5, 0.75, 0.45, 0.15)
    patch.fill(patch.line(pocket, 0.02), scaled(color, 0.65), 0.7)


def paint_dress(patch: Patch, color: Color, cover: Array) -> None:
    u, v = patch.u, patch.v
    trim = np.abs(neck_hole(u, v, "dress")) - 0.035
    patch.fill(patch.coverage(np.maximum(trim, body_distance(u, v))), mix(color, (1, 1, 1), 0.30))
    waist = np.abs(v - 3.2 - 0.1 * u * u) - 0.08
    patch.fill(patch.coverage(waist) * cover, scaled(color, 0.65))
    fold = np.clip(np.sin(u * 6.0 + v), 0, 1) * smoothstep(1.9, 3.2, v)
    patch.multiply(cover * fold, (0.84, 0.82, 0.86), 0.8)


def paint_neckwear(patch: Patch, look: Look) -> None:
    color = CLOTHES_COLORS[look.neckwear_color]
    if look.neckwear == "tie":
        paint_tie(patch, color)
    elif look.neckwear == "bow tie":
        paint_bow_tie(patch, color)
    elif look.neckwear == "scarf":
        paint_scarf(patch, color)


def paint_tie(patch: Patch, color: Color) -> None:
    u, v = patch.u, patch.v
    blade = polygon(u, v, [(-0.09, 1.62), (0.09, 1.62), (0.20, 2.75), (0.0, 2.98), (-0.20, 2.75)])
    cover = patch.coverage(blade)
    patch.fill(cover, color)
    stripe = np.sin((u + v) * 17.0)
    patch.fill(cover * np.clip(stripe * 2, 0, 1), mix(color, (1, 1, 1), 0.35), 0.7)
    knot = polygon(u, v, [(-0.15, 1.42), (0.15, 1.42), (0.085, 1.66), (-0.085, 1.66)])
    patch.fill(patch.coverage(knot), scaled(color, 0.82))
    patch.fill(patch.line(union(blade, knot), 0.018), scaled(color, 0.5), 0.6)


def paint_bow_tie(patch: Patch, color: Color) -> None:
    u, v = np.abs(patch.u), patch.v - 1.52
    wing = intersection(np.abs(v) - (0.07 + 0.42 * u), u - 0.34)
    patch.fill(patch.coverage(wing * 0.9), color)
    patch.fill(patch.line(wing, 0.02), scaled(color, 0.55), 0.7)
    patch.fill(patch.coverage(box(u, v, 0.075, 0.10, 0.04)), scaled(color, 0.78))


def paint_scarf(patch: Patch, color: Color) -> None:
    u, v = patch.u, patch.v
    tail = box(u - 0.30 - 0.06 * (v - 1.5), v - 2.05, 0.18, 0.62, 0.04)
    back = ellipse(u, v - 1.16 - 0.10 * u, 0.54, 0.25)
    wrap = ellipse(u, v - 1.38 + 0.16 * u, 0.66, 0.24)
    for shape, shade in ((tail, 0.86), (back, 0.70), (wrap, 1.0)):
        cover = patch.coverage(shape)
        patch.fill(cover, scaled(color, shade))
        stripes = np.clip(np.sin((v + 0.3 * u) * 22.0), 0, 1)
        patch.fill(cover * stripes, mix(color, (1, 1, 1), 0.35), 0.40 * shade)
        patch.fill(cover * smoothstep(-0.14, 0.02, shape), scaled(color, 0.55), 0.5)
