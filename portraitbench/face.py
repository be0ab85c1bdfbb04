"""Paints a person's bare face from its features, in the face's units (features.py)."""

from __future__ import annotations

import numpy as np

from .draw import (
    Array,
    Color,
    Patch,
    circle,
    ellipse,
    intersection,
    lerp,
    mix,
    scaled,
    segment,
    sign,
    smoothstep,
    union,
)
from .features import Features, head_distance
from .parameters import Attributes, Nuisance

EYE_WHITE: Color = (0.97, 0.96, 0.95)
INK: Color = (0.13, 0.08, 0.08)
LIGHT: Color = (1.0, 0.97, 0.90)
HEAD_BOX = (-1.15, -1.15, 1.15, 1.35)


def paint_ears(patch: Patch, f: Features) -> None:
    edge = f.half_width * 0.97
    u, v = np.abs(patch.u) - edge, patch.v - f.eye_v - 0.12
    shape = patch.coverage(ellipse(u - 0.14 * v - 0.02, v, f.ear * 0.62, f.ear * 1.25))
    patch.fill(shape, scaled(f.skin, 0.95), face=True)
    inner = patch.coverage(ellipse(u - 0.14 * v - 0.04, v, f.ear * 0.34, f.ear * 0.85), soft=0.03)
    patch.fill(inner, f.shadow, 0.55)


def paint_head(patch: Patch, f: Features, nuisance: Nuisance) -> Array:
    """Skin with soft light from one side. Returns the head's coverage."""
    distance = head_distance(patch.u, patch.v, f)
    cover = patch.coverage(distance)
    patch.fill(cover, f.skin, face=True)
    side = sign(nuisance.light_side)
    across = patch.u * (side / f.half_width)
    amount = nuisance.light_strength * (0.35 + 0.65 * abs(nuisance.light_side))
    dark = smoothstep(0.15, 1.15, -across + 0.25 * patch.v)
    patch.fill(cover * dark, f.shadow, 0.62 * amount)
    rim = smoothstep(-0.22, 0.02, distance)
    patch.fill(cover * rim, f.shadow, 0.26)
    glow = patch.coverage(ellipse(patch.u - 0.30 * side, patch.v + 0.38, 0.42, 0.34), soft=0.3)
    patch.fill(cover * glow, LIGHT, 0.20 * (0.4 + amount))
    return cover


def paint_cheeks(patch: Patch, f: Features, inside: Array) -> None:
    u = np.abs(patch.u) - (f.eye_u + 0.14)
    cheek = patch.coverage(ellipse(u, patch.v - f.nose_v + 0.03, 0.21, 0.15), soft=0.13)
    patch.fill(cheek * inside, mix((0.92, 0.38, 0.36), f.shadow, 0.25), 0.06 + f.blush)


def paint_sockets(patch: Patch, f: Features) -> None:
    """Shade around the eyes and beside the root of the nose."""
    u = np.abs(patch.u)
    socket = patch.coverage(
        ellipse(u - f.eye_u, patch.v - f.eye_v + 0.05, f.eye_width * 1.5, f.eye_height * 1.6 + 0.04), soft=0.09
    )
    patch.fill(socket, f.shadow, 0.30)
    root = patch.coverage(ellipse(u - 0.12, patch.v - f.eye_v + 0.05, 0.05, 0.13), soft=0.07)
    patch.fill(root, f.shadow, 0.32)


def paint_eyes(patch: Patch, f: Features, nuisance: Nuisance, closed: bool) -> None:
    """Both eyes at once: the left is the right one mirrored, but gaze and shine fall the same way."""
    side = np.sign(patch.u)
    x = np.abs(patch.u) - f.eye_u
    y = patch.v - f.eye_v + f.eye_tilt * x
    bow = 1 - (x / f.eye_width) ** 2
    upper = -f.eye_height * bow
    squint = 0.10 * max(nuisance.smile, 0.0)
    lower = (f.eye_height * (0.80 - squint)) * bow
    reach = np.abs(x) - f.eye_width
    if closed:
        paint_closed_lids(patch, f, x, y - lower * 0.6, reach)
        return
    opening = np.maximum(upper - y, y - lower) * 0.8
    inside = patch.coverage(opening)
    patch.fill(inside, EYE_WHITE)
    patch.fill(inside * smoothstep(0.5, -1.0, y / f.eye_height), f.shadow, 0.35)
    ix = patch.u - side * f.eye_u - (0.035 * nuisance.gaze)
    iris = min(f.eye_height * 0.98, f.eye_width * 0.58)
    patch.fill(inside * patch.coverage(circle(ix, y, iris)), scaled(f.eye_color, 0.5))
    patch.fill(inside * patch.coverage(circle(ix, y, iris * 0.84), soft=iris * 0.12), f.eye_color)
    patch.fill(
        inside * patch.coverage(ellipse(ix, y - iris * 0.42, iris * 0.62, iris * 0.40), soft=iris * 0.3),
        mix(f.eye_color, (1, 1, 1), 0.45),
        0.6,
    )
    patch.fill(inside * patch.coverage(circle(ix, y, iris * 0.44)), (0.05, 0.04, 0.05))
    shine = 0.34 * iris * sign(nuisance.light_side)
    patch.fill(patch.coverage(circle(ix - shine, y + iris * 0.38, iris * 0.25)), (1, 1, 1))
    lid = patch.coverage(intersection(np.abs(y - upper) - 0.020, reach - 0.02))
    patch.fill(lid, mix(INK, f.brow_color, 0.25), 0.95)
    lash = patch.coverage(
        segment(x, y, (f.eye_width * 0.80, -0.3 * f.eye_height), (f.eye_width * 1.22, -0.75 * f.eye_height)) - 0.014
    )
    patch.fill(lash, INK, 0.9)
    crease = patch.line(intersection(np.abs(y - upper * 1.25 + 0.035), reach + 0.02), 0.014)
    patch.fill(crease, scaled(f.shadow, 0.8), 0.55)
    under = patch.coverage(intersection(np.abs(y - lower) - 0.008, reach + 0.03))
    patch.fill(under, scaled(f.shadow, 0.75), 0.55)


def paint_closed_lids(patch: Patch, f: Features, x: Array, y: Array, reach: Array) -> None:
    patch.fill(
        patch.coverage(ellipse(x, y + f.eye_height * 0.35, f.eye_width, f.eye_height * 1.1), soft=0.03), f.skin, 0.8
    )
    patch.fill(patch.coverage(intersection(np.abs(y) - 0.022, reach)), INK, 0.92)
    for at in (-0.45, 0.1, 0.65):
        root = (at * f.eye_width, 0.0)
        tip = (at * f.eye_width * 1.25 + 0.01, 0.055)
        patch.fill(patch.coverage(segment(x, y, root, tip) - 0.010), INK, 0.8)


def paint_brows(patch: Patch, f: Features, nuisance: Nuisance, old: bool) -> None:
    x = np.abs(patch.u) - (f.eye_u + 0.02)
    reach = f.eye_width * 1.28 + 0.02
    t = np.clip(x / reach, -1, 1)
    lift = 0.03 * max(nuisance.smile, 0.0)
    y = patch.v - (f.brow_v - lift) + f.brow_arch * (1 - t * t) + (0.3 * f.eye_tilt) * x
    half = f.brow_thickness * (0.80 - 0.45 * t) * np.sqrt(np.maximum(1 - t**4, 0))
    shape = patch.coverage(intersection(np.abs(y) - half, np.abs(x) - reach))
    patch.fill(shape, mix(f.brow_color, (0.75, 0.74, 0.73), 0.65) if old else f.brow_color, 0.92)


def paint_nose(patch: Patch, f: Features, nuisance: Nuisance) -> None:
    side = sign(nuisance.light_side)
    u, v, w, base = patch.u, patch.v, f.nose_width, f.nose_v
    t = np.clip((v - f.eye_v) / (base - f.eye_v), 0, 1)
    flank = u * side + 0.055 + w * 0.55 * t * t
    flank_cover = patch.coverage(np.abs(flank) - 0.016, soft=0.05) * smoothstep(0.0, 0.5, t) * (v < base)
    patch.fill(flank_cover, f.shadow, 0.40)
    bridge = patch.coverage(ellipse(u - 0.015 * side, v - lerp(f.eye_v, base, 0.45), 0.045, 0.26), soft=0.05)
    patch.fill(bridge, LIGHT, 0.22)
    patch.fill(patch.coverage(ellipse(u, v - base + 0.06, w * 1.02, 0.085), soft=0.05), f.shadow, 0.20)
    patch.fill(patch.coverage(ellipse(u, v - base - 0.02, w * 0.95, 0.045), soft=0.04), f.shadow, 0.62)
    wing = np.abs(ellipse(np.abs(u) - w * 0.72, v - base + 0.055, w * 0.34, 0.072))
    outer = (np.abs(u) > w * 0.74) & (v > base - 0.11)
    patch.fill(patch.line(wing, 0.022) * outer, scaled(f.shadow, 0.72), 0.75)
    nostril = ellipse(np.abs(u) - w * 0.44, v - base + 0.004 - 0.1 * (np.abs(u) - w * 0.44), w * 0.24, 0.023)
    patch.fill(patch.coverage(nostril), scaled(f.shadow, 0.38), 0.85)
    patch.fill(patch.coverage(ellipse(u - 0.03 * side, v - base + 0.10, w * 0.40, 0.055), soft=0.04), LIGHT, 0.34)


def paint_mouth(patch: Patch, f: Features, nuisance: Nuisance) -> None:
    smile, half = nuisance.smile, f.mouth_width * (1 + 0.16 * nuisance.smile)
    t = patch.u / half
    bend = (1 - t * t) * (0.09 * smile)
    y = patch.v - (f.mouth_v - 0.09 * smile) - bend
    taper = np.clip(1 - t * t, 0, 1)
    gap = 0.085 * nuisance.mouth_open * taper
    bow = f.lip * 0.85 * taper**0.75 * (1 - 0.22 * np.exp(-((t / 0.16) ** 2)))
    full = f.lip * 1.2 * np.sqrt(taper)
    ends = np.abs(patch.u) - half
    top = y + gap * 0.35
    low = y - gap
    patch.fill(patch.coverage(ellipse(patch.u, low - f.lip * 1.9, half * 0.6, 0.04), soft=0.05), f.shadow, 0.45)
    upper = patch.coverage(intersection(-top - bow, top, ends) * 0.9)
    lower = patch.coverage(intersection(low - full, -low, ends) * 0.9)
    if nuisance.mouth_open > 0:
        hole = patch.coverage(intersection(-top, low, ends))
        patch.fill(hole, (0.30, 0.09, 0.10))
        teeth = patch.coverage(intersection(-top, low, top - gap * 0.75, ends + 0.03))
        patch.fill(teeth, (0.97, 0.95, 0.92), 0.95)
    patch.fill(upper, scaled(f.lip_color, 0.86))
    patch.fill(lower, f.lip_color)
    patch.fill(
        patch.coverage(ellipse(patch.u, low - f.lip * 0.55, half * 0.38, f.lip * 0.25), soft=0.03) * lower,
        (1, 0.95, 0.93),
        0.35,
    )
    seam = scaled(f.lip_color, 0.45)
    line = patch.coverage(intersection(np.abs(top) - 0.011, np.abs(patch.u) - half * 1.02))
    patch.fill(line, seam, 0.85)
    corner = patch.coverage(circle(np.abs(patch.u) - half, y, 0.022), soft=0.02)
    patch.fill(corner, seam, 0.6)


def paint_chin(patch: Patch, f: Features, inside: Array) -> None:
    patch.fill(patch.coverage(ellipse(patch.u, patch.v - f.chin + 0.13, 0.17, 0.10), soft=0.09) * inside, LIGHT, 0.13)


def paint_mole(patch: Patch, f: Features) -> None:
    u, v, radius = f.mole
    if radius > 0:
        patch.fill(patch.coverage(circle(patch.u - u, patch.v - v, radius)), (0.24, 0.12, 0.09), 0.9)


def paint_age(patch: Patch, f: Features) -> None:
    """Lines of the forehead, beside the eyes, from nose to mouth, and bags below the eyes."""
    u, v = np.abs(patch.u), patch.v
    ink = scaled(f.shadow, 0.78)
    for at in (0.13, 0.24):
        line = np.abs(v - (f.brow_v - at) - 0.10 * u * u)
        patch.fill(patch.coverage(intersection(line - 0.013, u - 0.34), soft=0.014), ink, 0.7)
    fold = segment(u, v, (f.nose_width + 0.05, f.nose_v - 0.06), (f.mouth_width + 0.11, f.mouth_v + 0.03))
    patch.fill(patch.coverage(fold - 0.016, soft=0.016), ink, 0.8)
    outer = f.eye_u + f.eye_width
    crow = union(
        *(segment(u, v, (outer + 0.05, f.eye_v + a), (outer + 0.15, f.eye_v + 2.4 * a)) for a in (-0.035, 0.0, 0.035))
    )
    patch.fill(patch.coverage(crow - 0.009), ink, 0.7)
    bag = np.abs(ellipse(u - f.eye_u, v - f.eye_v - 0.02, f.eye_width * 1.05, f.eye_height + 0.085))
    patch.fill(patch.coverage(np.maximum(bag - 0.010, f.eye_v + 0.05 - v), soft=0.012), ink, 0.6)


def paint_face(patch: Patch, f: Features, attributes: Attributes, nuisance: Nuisance) -> None:
    """Ears, head and every feature, back to front, on a patch that covers HEAD_BOX."""
    paint_ears(patch, f)
    inside = paint_head(patch, f, nuisance)
    paint_cheeks(patch, f, inside)
    paint_chin(patch, f, inside)
    paint_sockets(patch, f)
    if attributes.old:
        paint_age(patch, f)
    paint_nose(patch, f, nuisance)
    paint_mouth(patch, f, nuisance)
    paint_mole(patch, f)
    paint_eyes(patch, f, nuisance, attributes.eyes_closed)
    paint_brows(patch, f, nuisance, attributes.old)
