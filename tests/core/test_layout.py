"""Regions by hand: columns, grids, boxes, and the faces of a picture."""

import pytest
import torch

from magicapture_core.group import layout
from magicapture_core.types import Face, MagiCaptureError

SIZE = (40, 60)


def bounds(mask):
    """left, top, right, bottom of what is white."""
    rows, columns = mask[0].any(1).nonzero().flatten(), mask[0].any(0).nonzero().flatten()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_columns_fill_the_picture_from_left_to_right_without_overlap():
    masks = layout.grid(1, 3, SIZE)
    assert [bounds(mask) for mask in masks] == [(0, 0, 20, 40), (20, 0, 40, 40), (40, 0, 60, 40)]
    assert torch.equal(masks.sum(0), torch.ones(1, *SIZE))


def test_a_grid_goes_row_by_row_and_its_margins_keep_cells_apart():
    masks = layout.grid(2, 2, SIZE, margin=0.1)
    assert [bounds(mask) for mask in masks] == [(3, 2, 27, 18), (33, 2, 57, 18), (3, 22, 27, 38), (33, 22, 57, 38)]


def test_boxes_are_read_from_text_and_painted():
    text = "0, 0.5, 0.25, 1\n [.5 0 1 1] ; 0,0,1,0.25 "
    assert layout.read_boxes(text) == [(0, 0.5, 0.25, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.25)]
    masks = layout.boxes(layout.read_boxes(text), SIZE)
    assert [bounds(mask) for mask in masks] == [(0, 20, 15, 40), (30, 0, 60, 40), (0, 0, 60, 10)]


def test_a_box_thinner_than_a_pixel_is_one_pixel():
    assert bounds(layout.boxes([(0.5, 0.5, 0.501, 0.501)], SIZE)[0]) == (30, 20, 31, 21)
    assert bounds(layout.boxes([(0.999, 0.999, 1, 1)], SIZE)[0]) == (59, 39, 60, 40)


def test_faces_get_head_and_shoulders_and_no_more_than_half_the_way_to_the_next():
    faces = [Face(box=torch.tensor(box)) for box in ((80.0, 30.0, 100.0, 50.0), (30.0, 20.0, 50.0, 40.0))]
    left, right = layout.around_faces(faces, (80, 120), (80, 120))
    assert bounds(left) == (10, 6, 65, 80)  # 40 - 30; 20 - 0.7 * 20; the middle between 40 and 90
    assert bounds(right) == (65, 16, 120, 80)
    assert bounds(layout.around_faces(faces, (80, 120), (40, 60))[0]) == (5, 3, 32, 40)


def test_faces_above_one_another_are_parted_by_a_line_across():
    back = Face(box=torch.tensor((50.0, 10.0, 70.0, 30.0)))
    front = Face(box=torch.tensor((52.0, 50.0, 72.0, 70.0)))
    upper, lower = layout.around_faces([front, back], (80, 120), (80, 120))
    assert bounds(upper) == (30, 0, 90, 40)
    assert bounds(lower) == (32, 40, 92, 80)


def test_the_preview_shows_each_region_in_a_colour_of_its_own_over_the_picture():
    masks, picture = layout.grid(1, 2, (64, 96)), torch.rand(3, 64, 96)
    shown = layout.preview([*masks], picture)
    assert shown.shape == picture.shape
    corners = shown[:, 0, 0] - picture[:, 0, 0], shown[:, 0, -1] - picture[:, 0, -1]
    for corner, at, colour in zip(corners, (0, -1), layout.COLOURS, strict=False):
        expected = layout.TINT * (torch.tensor(colour) / 255 - picture[:, 0, at])
        torch.testing.assert_close(corner, expected, atol=0.01, rtol=0)
    assert layout.preview([*masks]).shape == (3, 64, 96)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: layout.grid(0, 2, SIZE), "0 rows and 2 columns"),
        (lambda: layout.boxes([(0, 0, 1, 1), (0.5, 0, 0.4, 1)], SIZE), "box 2 is 0.5, 0, 0.4, 1"),
        (lambda: layout.boxes([(0, 0, 1, 1.5)], SIZE), "box 1"),
        (lambda: layout.read_boxes("0, 1, 2"), "is no box"),
        (lambda: layout.read_boxes("nan 0 1 1"), "is no box"),
        (lambda: layout.read_boxes(" \n ; "), "there is none"),
        (lambda: layout.around_faces([], SIZE, SIZE), "no face is found"),
    ],
)
def test_what_is_no_layout_is_one_line(make, named):
    with pytest.raises(MagiCaptureError, match=named):
        make()
