"""Shapes and frames against what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from portraitbench.draw import Canvas, Frame, box, circle, ellipse, polygon, segment, smooth_union, union

POINTS = np.array([(0.0, 0.0), (0.3, -0.4), (-0.8, 0.9), (1.5, 0.2), (-0.1, -1.6)], np.float32)


@pytest.mark.parametrize("frame", [Frame(10, 20, 7), Frame(-3, 8, 30, roll=0.4, turn=0.2, nod=-0.1)])
def test_a_frame_and_its_inverse(frame: Frame) -> None:
    pixels = frame.to_pixels(POINTS)
    u, v = frame.to_local(pixels[:, 0], pixels[:, 1])
    np.testing.assert_allclose(np.stack([u, v], 1), POINTS, atol=1e-4)


def test_roll_is_clockwise_and_turn_moves_the_middle_most() -> None:
    [[x, y]] = Frame(0, 0, 10, roll=math.pi / 2).to_pixels([(1, 0)])
    assert (round(float(x), 4), round(float(y), 4)) == (0, 10)
    turned = Frame(0, 0, 1, turn=0.2).to_pixels([(0, 0), (0.6, 0), (1.2, 0), (2, 0)])
    np.testing.assert_allclose(turned[:, 0], [0.2, 0.75, 1.2, 2.0], atol=1e-6)


def test_distances_by_hand() -> None:
    u, v = np.array([0.0, 3.0, 5.0, 0.0], np.float32), np.array([0.0, 0.0, 0.0, 4.0], np.float32)
    np.testing.assert_allclose(circle(u, v, 3), [-3, 0, 2, 1])
    np.testing.assert_allclose(ellipse(u, v, 3, 4)[1:], [0, 2, 0], atol=1e-6)
    np.testing.assert_allclose(box(u, v, 2, 1), [-1, 1, 3, 3])
    np.testing.assert_allclose(segment(u, v, (0, 0), (3, 0)), [0, 0, 2, 4])
    np.testing.assert_allclose(polygon(u, v, [(-2, -1), (2, -1), (2, 1), (-2, 1)]), [-1, 1, 3, 3])


def test_a_smooth_union_is_the_union_away_from_the_corner() -> None:
    a, b = np.array([0.5, 0.0, -1.0], np.float32), np.array([-0.5, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(smooth_union(a, b, 0.4), union(a, b) - np.array([0, 0.1, 0], np.float32), atol=1e-7)


@pytest.mark.parametrize("scale", [3.0, 40.0])
def test_coverage_keeps_the_area_of_a_disc(scale: float) -> None:
    canvas = Canvas(128, 128)
    patch = canvas.patch(Frame(64.3, 63.8, scale), (-1.1, -1.1, 1.1, 1.1))
    area = float(patch.coverage(circle(patch.u, patch.v, 1.0)).sum())
    assert area == pytest.approx(math.pi * scale**2, rel=0.01)


def test_thin_lines_fade_and_keep_their_amount_of_ink() -> None:
    canvas = Canvas(64, 64)
    patch = canvas.patch(Frame(32, 32.25, 10), (-3, -3, 3, 3))
    column = patch.line(np.array(patch.v), 0.02)[:, 20]
    assert float(column.sum()) == pytest.approx(0.2, rel=0.01)  # 0.02 units are 0.2 pixels


def test_fill_paints_the_canvas_and_marks_and_hides_the_face() -> None:
    canvas = Canvas(8, 8)
    patch = canvas.patch(Frame(4, 4, 1), (-2, -2, 2, 2))
    everywhere = np.ones_like(patch.u)
    patch.fill(everywhere, (1.0, 0.5, 0.0), face=True)
    assert canvas.planes[:, 4, 4].tolist() == [1.0, 0.5, 0.0, 1.0]
    patch.fill(everywhere, (0.0, 0.5, 1.0), 0.25)
    assert canvas.planes[:, 4, 4].tolist() == [0.75, 0.5, 0.25, 1.0]
    patch.fill(everywhere, (0.0, 0.0, 0.0), face=False)
    assert canvas.planes[:, 4, 4].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert canvas.planes[:, 0, 0].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_patch_off_the_canvas_is_empty() -> None:
    patch = Canvas(16, 16).patch(Frame(200, 8, 10), (-1, -1, 1, 1))
    patch.fill(patch.coverage(circle(patch.u, patch.v, 1)), (1, 1, 1))
    assert patch.u.size == 0
