"""Signed distances, frames and a canvas: shapes in local units become anti-aliased pixels at any resolution.

A distance is negative inside its shape. All arrays are float32, colours 0..1 RGB. Knows nothing of faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Color = tuple[float, float, float]

BULGE_WIDTH, BULGE_HEIGHT = 1.2, 1.35  # how far from the centre turning and nodding still move anything


@dataclass(frozen=True)
class Frame:
    """Local units (u right, v down) -> pixels. `turn` and `nod` push the middle of the frame sideways and down, as the
    nearest part of a turning head moves furthest: x = u + turn * max(0, 1 - (u / BULGE_WIDTH)^2)."""

    x: float  # where (0, 0) of the unturned frame lies, in pixels
    y: float
    scale: float  # pixels per unit
    roll: float = 0.0  # radians, clockwise in the picture
    turn: float = 0.0
    nod: float = 0.0

    def to_pixels(self, points: Sequence[tuple[float, float]] | Array) -> Array:
        """points [n,2] u v -> [n,2] x y."""
        u, v = np.asarray(points, np.float32).T
        u, v = _bulge(u, self.turn, BULGE_WIDTH), _bulge(v, self.nod, BULGE_HEIGHT)
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        x = self.x + self.scale * (cos * u - sin * v)
        y = self.y + self.scale * (sin * u + cos * v)
        return np.stack([x, y], 1).astype(np.float32)

    def to_local(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Pixel coordinates -> u, v: the inverse of `to_pixels`."""
        cos, sin = math.cos(self.roll) / self.scale, math.sin(self.roll) / self.scale
        x, y = x - self.x, y - self.y
        u, v = cos * x + sin * y, cos * y - sin * x
        return _unbulge(u, self.turn, BULGE_WIDTH), _unbulge(v, self.nod, BULGE_HEIGHT)


def _bulge(u: Array, push: float, reach: float) -> Array:
    return u + push * np.maximum(0, 1 - (u / reach) ** 2)


def _unbulge(x: Array, push: float, reach: float) -> Array:
    """Solves x = u + push (1 - (u / reach)^2) for u where |x| < reach; elsewhere u = x."""
    if push == 0:
        return x
    curve = push / reach**2
    root = np.sqrt(np.maximum(1 - 4 * curve * (x - push), 0))
    return np.where(np.abs(x) < reach, 2 * (x - push) / (1 + root), x)


class Canvas:
    """Planar colour [3,H,W] and one mask plane: what is painted with face=True shows white there, what covers it black.

    `planes` [4,H,W] float32.
    """

    def __init__(self, height: int, width: int) -> None:
        self.planes = np.zeros((4, height, width), np.float32)
        self.height, self.width = height, width

    def patch(self, frame: Frame, box: tuple[float, float, float, float]) -> Patch:
        """The pixels that the box (u0, v0, u1, v1) of a frame may touch, with their local coordinates."""
        u0, v0, u1, v1 = box
        corners = frame.to_pixels([(u0, v0), (u1, v0), (u0, v1), (u1, v1)])
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        xs = _span(x0, x1, self.width)
        ys = _span(y0, y1, self.height)
        x = np.arange(xs.start, xs.stop, dtype=np.float32)[None, :] + 0.5
        y = np.arange(ys.start, ys.stop, dtype=np.float32)[:, None] + 0.5
        u, v = frame.to_local(x, y)
        shape = (ys.stop - ys.start, xs.stop - xs.start)
        return Patch(
            u=np.broadcast_to(u, shape),
            v=np.broadcast_to(v, shape),
            pixel=1 / frame.scale,
            planes=self.planes[:, ys, xs],
        )


def _span(low: float, high: float, size: int) -> slice:
    start = min(max(int(np.floor(low)) - 1, 0), size)
    return slice(start, max(start, min(int(np.ceil(high)) + 1, size)))


@dataclass(frozen=True, eq=False)
class Patch:
    """A window of the canvas seen in local coordinates. `pixel` is the size of one pixel in local units."""

    u: Array  # [h,w]
    v: Array  # [h,w]
    pixel: float
    planes: Array  # [4,h,w], a view into the canvas

    def coverage(self, distance: Array, soft: float = 0.0) -> Array:
        """How much of each pixel lies inside, 0..1; `soft` is the width of a blurred edge in local units."""
        if soft <= self.pixel:
            return np.clip(0.5 - distance / self.pixel, 0, 1)
        t = np.clip(0.5 - distance / (2 * soft), 0, 1)
        return t * t * (3 - 2 * t)

    def line(self, distance: Array, thickness: float) -> Array:
        """Coverage of a stroke along distance = 0. Strokes thinner than a pixel fade instead of growing."""
        half = max(thickness / 2, self.pixel / 2)
        return self.coverage(np.abs(distance) - half) * (thickness / 2 / half)

    def fill(self, coverage: Array, color: Color | Array, opacity: float = 1.0, face: bool | None = None) -> None:
        """Blend a colour (or a picture [3,h,w]) in. `face` also marks (True) or hides (False) the face mask."""
        alpha = coverage if opacity == 1.0 else coverage * opacity
        ink = np.asarray(color, np.float32)
        ink = ink[:, None, None] if ink.ndim == 1 else ink
        self.planes[:3] += (ink - self.planes[:3]) * alpha
        if face is not None:
            self.planes[3] += (face - self.planes[3]) * alpha

    def multiply(self, coverage: Array, color: Color, opacity: float = 1.0) -> None:
        """Shade what is there: colours below 1 darken, above 1 lighten."""
        ink = np.asarray(color, np.float32)[:, None, None] - 1
        self.planes[:3] *= 1 + ink * (coverage * opacity)


def ellipse(u: Array, v: Array, radius_u: float, radius_v: float) -> Array:
    """Distance to an ellipse, exact on its outline and of the right slope there."""
    a, b = u / radius_u, v / radius_v
    rho = np.sqrt(a * a + b * b)
    slope = np.sqrt((a / radius_u) ** 2 + (b / radius_v) ** 2)
    return (rho - 1) * rho / np.maximum(slope, 1e-6)


def circle(u: Array, v: Array, radius: float) -> Array:
    return np.hypot(u, v) - radius


def box(u: Array, v: Array, half_u: float, half_v: float, corner: float = 0.0) -> Array:
    """Distance to a rectangle with rounded corners."""
    a = np.abs(u) - (half_u - corner)
    b = np.abs(v) - (half_v - corner)
    outside = np.hypot(np.maximum(a, 0), np.maximum(b, 0))
    return outside + np.minimum(np.maximum(a, b), 0) - corner


def segment(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """Distance to a line from start to end (never negative)."""
    du, dv = end[0] - start[0], end[1] - start[1]
    a, b = u - (start[0]), v - (start[1])
    t = np.clip((a * du + b * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(a - t * du, b - t * dv)


def polygon(u: Array, v: Array, corners: Sequence[tuple[float, float]]) -> Array:
    """Distance to a convex polygon given clockwise on the picture."""
    sides = zip(corners, [*corners[1:], corners[0]], strict=True)
    distance: Array | None = None
    for (u0, v0), (u1, v1) in sides:
        length = math.hypot(u1 - u0, v1 - v0)
        side = (u - u0) * ((v1 - v0) / length) - (v - v0) * ((u1 - u0) / length)
        distance = side if distance is None else np.maximum(distance, side)
    assert distance is not None
    return distance


def union(*distances: Array) -> Array:
    return np.minimum.reduce(distances)


def intersection(*distances: Array) -> Array:
    return np.maximum.reduce(distances)


def smooth_union(a: Array, b: Array, width: float) -> Array:
    """Union whose inner corner is rounded over `width`."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * (width / 4)


def smoothstep(low: float, high: float, x: Array) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def lerp(low: float, high: float, t: float) -> float:
    return low + (high - low) * t


def mix(a: Color, b: Color, t: float) -> Color:
    """From colour a (t = 0) to colour b (t = 1)."""
    return (lerp(a[0], b[0], t), lerp(a[1], b[1], t), lerp(a[2], b[2], t))


def scaled(color: Color, factor: float) -> Color:
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def sign(value: float) -> float:
    """-1 or 1."""
    return math.copysign(1.0, value)
