"""Masks grow by disks, soften around their edge, and hold the whole face."""

from __future__ import annotations

import pytest
import torch

from magicapture_core.painting import convex_hull, grow_mask, paint_oval, soften


def test_the_hull_by_hand() -> None:
    square = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)]
    assert convex_hull([(2.0, 2.0), *square, (2.0, 0.0), (1.0, 3.0), (4.0, 4.0)]) == square
    assert convex_hull([(2.0, 5.0), (1.0, 1.0), (3.0, 1.0), (2.0, 2.0)]) == [(1.0, 1.0), (3.0, 1.0), (2.0, 5.0)]


def test_the_oval_holds_every_landmark() -> None:
    """A disk of landmarks and a nose that stands out of it, as in a profile: the disk and the triangle to the tip."""
    angles = torch.arange(467) / 467 * 2 * torch.pi
    face = torch.stack([angles.cos(), angles.sin()], 1) * 20 + 50
    mask = paint_oval(torch.cat([face, torch.tensor([[90.0, 50.0]])]), 100)
    tangent = 20 * 3**0.5 * 20 - 20**2 * torch.pi / 3  # from a point at twice the radius, without the disk's sector
    assert mask.sum() == pytest.approx(torch.pi * 20**2 + tangent, rel=0.01)
    assert mask[0, 50, 86] == 1
    assert mask[0, 60, 86] == 0


def test_grow_mask_makes_a_disk_of_a_dot() -> None:
    dot = torch.zeros(1, 61, 61)
    dot[0, 30, 30] = 1
    for radius in (1, 5, 12, 20):
        grown = grow_mask(dot, radius)
        assert grown[0, 30].sum() == grown[0, :, 30].sum() == 2 * radius + 1
        assert grown.sum() == pytest.approx(torch.pi * (radius + 0.5) ** 2, rel=0.12 + 0.5 / radius)
    torch.testing.assert_close(grow_mask(1 - dot, -12), 1 - grow_mask(dot, 12))
    torch.testing.assert_close(grow_mask(torch.ones(1, 9, 9), -3), torch.ones(1, 9, 9))  # beyond the picture is unknown


def test_soften_keeps_the_area_and_the_place_of_the_edge() -> None:
    step = torch.zeros(1, 40, 40)
    step[..., 20:] = 1
    soft = soften(step, 8)
    torch.testing.assert_close(soft.mean(), step.mean())
    profile = soft[0, 20]
    assert profile[15] < 0.05
    assert profile[24] > 0.95
    assert (profile[1:] >= profile[:-1]).all()
    assert profile[19] + profile[20] == pytest.approx(1)
    assert soften(step, 0) is step
