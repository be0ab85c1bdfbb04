"""Curves of losses."""

from __future__ import annotations

import pytest

from magicapture_core.curves import draw_curves, running_mean


def test_curves_go_where_the_values_are() -> None:
    falling = draw_curves({"loss": [float(value) for value in range(100, 0, -1)], "none": [float("nan")] * 3})
    assert falling.shape == (3, 384, 768)
    red, _, blue = falling[:, 28:360, 66:756]
    rows = (blue - red > 0.3).float().argmax(0)  # the upper edge of the blue line, per column
    assert rows[10] < 30
    assert rows[-10] > 200
    assert (rows[1:] >= rows[:-1] - 1).float().mean() > 0.95
    draw_curves({})  # before the first step
    draw_curves({"loss": [1.0]})


def test_running_mean_by_hand() -> None:
    assert running_mean([2.0, float("nan"), 4.0]) == pytest.approx([2, 2, (0.95 * 2 + 4) / 1.95])
