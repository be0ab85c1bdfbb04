"""The square that is cut, for any box in any photo; pixels, masks and points travel together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from magicapture_core.framing import LEAST_SHARE, MOST_SHARE, Square, frame
from magicapture_core.types import Face


def box(left: float, top: float, side: float) -> Tensor:
    return torch.tensor([left, top, left + side, top + side])


@given(
    height=st.integers(64, 3000),
    width=st.integers(64, 3000),
    size=st.floats(0.02, 1.0),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    share=st.floats(LEAST_SHARE, MOST_SHARE),
)
def test_any_face_takes_its_share(height: int, width: int, size: float, x: float, y: float, share: float) -> None:
    side = max(size * min(height, width), 4.0)
    left, top = x * (width - side), y * (height - side)
    square = frame(box(left, top, side), height, width, share)
    rounding = 1.5 / square.side
    assert LEAST_SHARE - 4 * rounding <= side / square.side <= MOST_SHARE + rounding
    assert square.left - 1 <= left
    assert left + side <= square.left + square.side + 1
    assert square.top - 1 <= top
    assert top + side <= square.top + square.side + 1
    across, above = square.padding
    assert (across, above) == (max(square.side - width, 0), max(square.side - height, 0))
    if not across:
        assert 0 <= square.left <= width - square.side
    if not above:
        assert 0 <= square.top <= height - square.side
    if across or above:  # only where the face is too large for any square of the photo
        assert side / min(height, width) > MOST_SHARE - rounding


def test_a_small_face_gets_the_share_asked_for() -> None:
    square = frame(box(100, 150, 50), 1000, 800, 0.4)
    assert (square.side, square.left, square.top) == (125, 62, 112)  # the middle of the face is the middle of the cut


def test_a_small_face_at_the_border_is_cut_out_inside() -> None:
    square = frame(box(0, 950, 50), 1000, 800, 0.4)
    assert (square.side, square.left, square.top) == (125, 0, 875)


def test_a_photo_that_is_right_keeps_its_middle() -> None:
    square = frame(box(300, 100, 320), 600, 1000, 0.4)
    assert (square.side, square.left, square.top) == (600, 200, 0)
    moved = frame(box(20, 100, 320), 600, 1000, 0.4)
    assert (moved.side, moved.left, moved.top) == (600, 0, 0)  # as far as the face needs, not beyond the photo


def test_a_face_that_fills_the_photo_gets_room_by_repeated_edges() -> None:
    square = frame(box(10, 100, 480), 800, 500, 0.4)
    assert (square.side, square.left, square.top) == (800, -150, 0)
    picture = torch.arange(500.0).expand(1, 800, 500)
    cut = square.cut(picture, 800)
    assert (cut[..., :150] == 0).all()
    assert (cut[..., 650:] == 499).all()
    torch.testing.assert_close(cut[..., 150:650], picture)
    black = square.cut(torch.ones(1, 800, 500), 800, padding="constant")
    assert black[..., :150].max() == black[..., 650:].max() == 0
    assert black[..., 150:650].min() == 1


@pytest.mark.parametrize("square", [(30, 20, 80), (-15, 5, 120)])
def test_pixels_and_points_move_alike(square: tuple[int, int, int]) -> None:
    """A bright dot of the photo is where its point is said to be."""
    left, top, side = square
    photo = torch.zeros(1, 140, 100)
    photo[0, 48:52, 58:62] = 1
    cutter = Square(left=left, top=top, side=side, height=140, width=100)
    cut = cutter.cut(photo, 240)[0]
    rows, columns = torch.meshgrid(torch.arange(240) + 0.5, torch.arange(240) + 0.5, indexing="ij")
    found = torch.stack([(cut * columns).sum(), (cut * rows).sum()]) / cut.sum()
    spot = torch.tensor([60.0, 50.0])
    torch.testing.assert_close(found, cutter.points(spot, 240), atol=0.1, rtol=0)
    face = cutter.face(Face(box=torch.tensor([50.0, 40, 60, 50]), landmarks=spot.expand(5, 2), file_name="a"), 240)
    assert face.landmarks is not None
    torch.testing.assert_close(face.landmarks[0], cutter.points(spot, 240))
    torch.testing.assert_close(face.box[2:], cutter.points(spot, 240))
    assert face.file_name == "a"
