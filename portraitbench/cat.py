"""Paints a cat, the pet of this world. Local units: the middle of the face at (0, 0), the chin near v = 0.8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draw import (
    Array,
    Color,
    Patch,
    box,
    circle,
    ellipse,
    intersection,
    lerp,
    mix,
    polygon,
    scaled,
    segment,
    sign,
    smooth_union,
    smoothstep,
    union,
)
from .features import blend
from .parameters import CLOTHES_COLORS, CatIdentity, Look, Nuisance

CAT_BOX = (-1.35, -1.5, 1.35, 1.1)
GREY_FURS: tuple[Color, ...] = ((0.94, 0.93, 0.91), (0.58, 0.58, 0.61), (0.22, 0.22, 0.25))
ORANGE_FURS: tuple[Color, ...] = ((0.97, 0.86, 0.70), (0.88, 0.55, 0.24), (0.45, 0.25, 0.14))
CAT_EYES: tuple[Color, ...] = ((0.87, 0.60, 0.13), (0.48, 0.70, 0.25), (0.28, 0.60, 0.84))
DARK: Color = (0.10, 0.08, 0.09)


@dataclass(frozen=True)
class CatFeatures:
    """The measures and colours of one cat: what the identity's numbers mean."""

    fur: Color
    marking: Color
    half_width: float
    cheeks: float
    ear: float
    ear_spread: float
    eye_u: float
    eye: float
    eye_color: Color
    stripes: float
    patch: float
    muzzle: float
    nose_color: Color
    whiskers: float

    @classmethod
    def of(cls, identity: CatIdentity) -> CatFeatures:
        i = identity
        fur = mix(blend(GREY_FURS, i.fur), blend(ORANGE_FURS, i.fur), i.warmth)
        return cls(
            fur=fur,
            marking=mix(scaled(fur, 0.45), (0.20, 0.13, 0.10), 0.3)
            if i.fur < 0.7
            else mix(fur, (1.0, 0.93, 0.82), 0.6),
            half_width=lerp(0.86, 1.06, i.width),
            cheeks=lerp(0.0, 0.22, i.cheeks),
            ear=lerp(0.50, 0.80, i.ear_size),
            ear_spread=lerp(0.48, 0.68, i.ear_spread),
            eye_u=lerp(0.34, 0.48, i.eye_distance),
            eye=lerp(0.15, 0.24, i.eye_size),
            eye_color=blend(CAT_EYES, i.eye_hue),
            stripes=max(0.0, 1.5 * i.stripes - 0.5),
            patch=lerp(0.30, 0.60, 2 * i.patch - 1) if i.patch > 0.5 else 0.0,
            muzzle=lerp(0.20, 0.36, i.muzzle),
            nose_color=mix((0.93, 0.55, 0.57), (0.16, 0.12, 0.13), i.nose),
            whiskers=lerp(0.35, 0.75, i.whiskers),
        )

    def landmarks(self) -> list[tuple[float, float]]:
        """Eye, eye, nose, mouth corner, mouth corner, each pair from left to right."""
        return [(-self.eye_u, -0.10), (self.eye_u, -0.10), (0.0, 0.27), (-0.20, 0.50), (0.20, 0.50)]

    def outline(self) -> list[tuple[float, float]]:
        """Points that bound the head and its ears."""
        wide, tip = self.half_width + self.cheeks + 0.08, (self.ear_spread + 0.20, -0.60 - self.ear)
        points = [(wide, 0.25), (wide, -0.25), (wide, 0.5), (0.2, 0.83), tip]
        return points + [(-u, v) for u, v in points]


def head_distance(u: Array, v: Array, f: CatFeatures) -> Array:
    skull = ellipse(u, v, f.half_width, 0.80)
    cheeks = ellipse(np.abs(u) - f.half_width * 0.62, v - 0.32, 0.34 + f.cheeks, 0.36)
    return smooth_union(skull, cheeks, 0.15)


def paint_ears(patch: Patch, f: CatFeatures) -> None:
    u, v = np.abs(patch.u), patch.v
    tip = (f.ear_spread + 0.16, -0.55 - f.ear)
    ear = polygon(u, v, [(f.ear_spread - 0.34, -0.55), tip, (f.ear_spread + 0.34, -0.30), (0.3, 0.0)]) - 0.03
    patch.fill(patch.coverage(ear), scaled(f.fur, 0.92), face=True)
    inner = polygon(u, v, [(f.ear_spread - 0.16, -0.58), (tip[0] - 0.01, tip[1] + 0.16), (f.ear_spread + 0.20, -0.42)])
    patch.fill(patch.coverage(inner, soft=0.03), mix((0.95, 0.66, 0.64), f.fur, 0.3))


def paint_head(patch: Patch, f: CatFeatures, nuisance: Nuisance) -> None:
    u, v = patch.u, patch.v
    distance = head_distance(u, v, f)
    cover = patch.coverage(distance)
    patch.fill(cover, f.fur, face=True)
    if f.patch > 0:
        spot = patch.coverage(ellipse(u - f.eye_u, v + 0.14, f.patch, f.patch * 1.05), soft=0.03)
        patch.fill(cover * spot, f.marking, 0.9)
    if f.stripes > 0:
        forehead = union(*(segment(np.abs(u), v, (at, -0.74), (at * 0.8, -0.42)) for at in (0.0, 0.17, 0.34)))
        sides = union(*(segment(np.abs(u), v, (1.15, at), (0.66, at + 0.08)) for at in (0.02, 0.22, 0.42)))
        patch.fill(cover * patch.coverage(union(forehead, sides) - 0.045, soft=0.02), f.marking, f.stripes)
    side = sign(nuisance.light_side)
    patch.multiply(cover * smoothstep(0.1, 1.1, -u * side), (0.66, 0.62, 0.66), nuisance.light_strength)
    patch.multiply(cover * smoothstep(-0.20, 0.02, distance), (0.72, 0.69, 0.71), 0.7)


def paint_muzzle(patch: Patch, f: CatFeatures, nuisance: Nuisance) -> None:
    u, v = np.abs(patch.u), patch.v
    pale = mix(f.fur, (1.0, 0.98, 0.95), 0.72)
    puff = smooth_union(
        ellipse(u - 0.16, v - 0.44, f.muzzle * 0.85, f.muzzle * 0.72), ellipse(u, v - 0.56, 0.2, 0.2), 0.1
    )
    patch.fill(patch.coverage(puff, soft=0.03), pale)
    if nuisance.mouth_open > 0:
        tongue = ellipse(u, v - 0.58, 0.10, 0.05 + 0.07 * nuisance.mouth_open)
        patch.fill(patch.coverage(tongue), (0.86, 0.40, 0.44))
    lift = 0.05 * max(nuisance.smile, 0.0)
    lip = np.abs(circle(u - 0.10, v - 0.42 + lift, 0.115)) - 0.016
    patch.fill(patch.coverage(np.maximum(lip, 0.46 - v)), DARK, 0.8)
    patch.fill(patch.coverage(segment(u, v, (0, 0.30), (0, 0.48)) - 0.014), DARK, 0.8)
    nose = polygon(u, v, [(-0.2, 0.20), (0.13, 0.20), (0.10, 0.27), (0.0, 0.36), (-0.2, 0.36)])
    patch.fill(patch.coverage(nose - 0.02), f.nose_color)
    patch.fill(patch.coverage(ellipse(patch.u, v - 0.225, 0.05, 0.018), soft=0.01), (1, 1, 1), 0.5)
    for rise in (-0.10, 0.0, 0.10):
        hair = segment(u, v, (0.26, 0.42 + rise * 0.4), (0.30 + f.whiskers, 0.42 + rise * 1.6))
        patch.fill(patch.line(hair, 0.018), (0.98, 0.97, 0.95), 0.85)


def paint_eyes(patch: Patch, f: CatFeatures, nuisance: Nuisance, closed: bool) -> None:
    side = np.sign(patch.u)
    x, y = np.abs(patch.u) - f.eye_u, patch.v + 0.10
    y = y + 0.16 * x
    if closed:
        arc = np.abs(y + 0.06 * (1 - (x / f.eye) ** 2) - 0.04) - 0.02
        patch.fill(patch.coverage(np.maximum(arc, np.abs(x) - f.eye)), DARK, 0.9)
        return
    opening = ellipse(x, y, f.eye, f.eye * 0.86)
    patch.fill(patch.coverage(opening - 0.03), DARK)
    inside = patch.coverage(opening)
    patch.fill(inside, f.eye_color)
    patch.fill(inside * smoothstep(0.3, -1.0, y / f.eye), scaled(f.eye_color, 0.5), 0.8)
    look = patch.u - side * f.eye_u - 0.05 * nuisance.gaze
    patch.fill(inside * patch.coverage(ellipse(look, y, f.eye * 0.34, f.eye * 0.72)), (0.04, 0.03, 0.04))
    shine = 0.3 * f.eye * sign(nuisance.light_side)
    patch.fill(patch.coverage(circle(look - shine, y + f.eye * 0.32, f.eye * 0.20)), (1, 1, 1))


def paint_body(patch: Patch, f: CatFeatures, look: Look) -> None:
    """Chest, front legs and a collar, on the body's patch."""
    u, v = patch.u, patch.v
    chest = smooth_union(ellipse(u, v - 2.2, 1.0, 1.5), box(u, v - 3.2, 1.15, 1.2, 0.5), 0.4)
    chest = np.where(v > 3.4, np.abs(u) - 1.15, chest)
    cover = patch.coverage(chest)
    patch.fill(cover, scaled(f.fur, 0.88))
    patch.fill(
        cover * patch.coverage(ellipse(u, v - 1.7, 0.55, 0.75), soft=0.15), mix(f.fur, (1, 0.98, 0.95), 0.7), 0.8
    )
    patch.multiply(cover * smoothstep(-0.3, 0.0, chest), (0.70, 0.67, 0.70))
    patch.multiply(cover * patch.coverage(ellipse(u, v - 0.80, 0.9, 0.36), soft=0.15), (0.60, 0.57, 0.60))
    color = CLOTHES_COLORS[look.clothes_color]
    band = patch.coverage(intersection(np.abs(v - 1.02 + 0.22 * u * u) - 0.10, np.abs(u) - 0.86))
    patch.fill(band, color)
    patch.fill(patch.coverage(circle(u, v - 1.20, 0.13)), (0.95, 0.78, 0.30))
    patch.fill(patch.coverage(intersection(np.abs(v - 1.22) - 0.014, np.abs(u) - 0.12)), (0.45, 0.33, 0.08))


def paint_cat_face(patch: Patch, f: CatFeatures, nuisance: Nuisance, closed: bool) -> None:
    paint_ears(patch, f)
    paint_head(patch, f, nuisance)
    paint_muzzle(patch, f, nuisance)
    paint_eyes(patch, f, nuisance, closed)
