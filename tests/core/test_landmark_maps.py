"""Landmark maps: every part where it is in a photo, mirrored as the photo is, in the annotators' sizes and colours."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from magicapture_core.faces import FIVE_POINTS, FaceDetector
from magicapture_core.images import resize
from magicapture_core.landmark_maps import (
    BONES,
    HEAD,
    IBUG,
    JOINTS,
    OUTLINES,
    PUPILS,
    Style,
    ibug_points,
    landmark_map,
    skeleton_map,
)
from magicapture_core.painting import grow_mask

SIZE = 512
MIRRORED = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38,
            37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65, 69, 68]  # fmt: skip


@pytest.fixture(scope="module")
def photo(astronaut: Tensor) -> Tensor:
    """[3,512,512], the head."""
    return resize(astronaut[None, :, 20:220, 120:320], (SIZE, SIZE))[0]


@pytest.fixture(scope="module")
def mesh(photo: Tensor, detector: FaceDetector) -> Tensor:
    (face,) = detector.detect(photo)
    return detector.mesh(photo, face)


def scattered(*points: tuple[int, float, float]) -> Tensor:
    """A mesh outside of every picture but for these points."""
    mesh = torch.full((468, 2), -1000.0)
    for index, x, y in points:
        mesh[index] = torch.tensor([x, y])
    return mesh


def test_the_points_lie_where_ibug_has_them(mesh: Tensor) -> None:
    points = ibug_points(mesh)
    x, y = points.unbind(1)
    rows = (range(17), range(17, 27), range(31, 36), range(36, 40), range(42, 46), range(48, 55), range(60, 65))
    for row in rows:
        assert x[list(row)].diff().min() > 0, row  # from left to right
    assert y[27:31].diff().min() > 0  # down the nose
    assert y[17:27].max() < y[36:48].min() < y[31:36].min() < y[48:68].min() < y[8]  # brows, eyes, nose, mouth, chin
    upper, lower = [37, 38, 43, 44, *range(49, 54), 61, 62, 63], [41, 40, 47, 46, *range(59, 54, -1), 67, 66, 65]
    assert (y[upper] < y[lower]).all()
    five = torch.stack([mesh[list(indices)].mean(0) for indices in FIVE_POINTS])
    height = y.max() - y.min()
    assert torch.equal(points[[30, 48, 54]], five[2:])
    assert (points[68:] - five[:2]).norm(dim=1).max() < 0.03 * height


def test_no_outline_jumps_over_the_face(mesh: Tensor) -> None:
    height = mesh[:, 1].max() - mesh[:, 1].min()
    steps = [(a, b) for chains in OUTLINES.values() for chain in chains for a, b in pairwise(chain)]
    assert max((mesh[a] - mesh[b]).norm() for a, b in steps) < 0.14 * height
    assert len({frozenset(step) for step in steps}) == 124  # FaceMesh's contours


def test_the_table_is_symmetric(photo: Tensor, mesh: Tensor, detector: FaceDetector) -> None:
    """The points of the mirrored photo are the photo's, mirrored."""
    flipped = photo.flip(-1)
    (face,) = detector.detect(flipped)
    there = ibug_points(detector.mesh(flipped, face))[MIRRORED] * torch.tensor([-1.0, 1]) + torch.tensor([SIZE, 0])
    assert len(IBUG) == len(MIRRORED) == 70
    assert (there - ibug_points(mesh)).norm(dim=1).max() < 0.02 * SIZE


def test_a_dot_is_a_white_disk_of_seven_pixels() -> None:
    shown = landmark_map(scattered((4, 100.7, 200.2)), SIZE, "openpose")
    rows, columns = shown[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (197, 203, 97, 103)
    assert set(shown.unique().tolist()) == {0.0, 1.0}
    assert 29 <= len(rows) <= 37
    assert landmark_map(scattered((4, 12.6, 25.0)), 64, "openpose")[0].nonzero().tolist() == [[25, 12]]


def test_a_line_is_two_pixels_wide_and_has_the_colour_of_its_part() -> None:
    shown = landmark_map(scattered((61, 100.0, 50.0), (146, 140.0, 50.0)), SIZE, "mediapipe")
    middle = shown[:, 40:60, 120]
    assert middle.any(0).sum() == 2
    assert (middle[:, middle.any(0)].T * 255).round().tolist() == [[10, 180, 10]] * 2


def test_a_pupil_is_four_pixels_in_the_middle_of_its_eye(mesh: Tensor) -> None:
    """The right one orange, on the left of the picture; it hides the lids that it lies on."""
    shown = (landmark_map(mesh, SIZE, "mediapipe") * 255).round()
    for colour, eye in PUPILS.items():
        rows, columns = (shown == torch.tensor(colour)[:, None, None]).all(0).nonzero().unbind(1)
        assert len(rows) == 16
        assert (torch.stack([columns, rows], 1).float().mean(0) + 0.5 - mesh[list(eye)].mean(0)).abs().max() <= 1
    orange, blue = PUPILS
    first, second = ((shown == torch.tensor(c)[:, None, None]).all(0).nonzero()[:, 1].max() for c in (orange, blue))
    assert first < second


@pytest.mark.parametrize("style", ["openpose", "mediapipe"])
def test_a_small_map_is_the_large_one_made_small(mesh: Tensor, style: Style) -> None:
    large, small = landmark_map(mesh, SIZE, style), landmark_map(mesh / 4, SIZE // 4, style)
    assert small.shape == (3, SIZE // 4, SIZE // 4)
    drawn = resize(large.amax(0)[None, None], (SIZE // 4, SIZE // 4))[0] > 0
    assert not (small.amax(0)[None] > 0).logical_and(grow_mask(drawn.float(), 1) == 0).any()


def test_a_head_is_five_joints_and_four_bones(mesh: Tensor) -> None:
    """Joints in their own colours, over bones of six tenths of theirs; right is on the left of the picture."""
    shown = (skeleton_map(mesh, SIZE) * 255).round()
    spots = {name: mesh[list(indices)].mean(0) for name, indices in HEAD.items()}
    x = [float(spots[name][0]) for name in ("right_ear", "right_eye", "nose", "left_eye", "left_ear")]
    assert x == sorted(x)
    for name, colour in JOINTS.items():
        column, row = spots[name].long().tolist()
        assert tuple(shown[:, row, column].tolist()) == colour, name
    for (start, end), colour in BONES.items():
        column, row = ((spots[start] + spots[end]) / 2).long().tolist()
        assert shown[:, row, column].tolist() == [round(0.6 * value) for value in colour], (start, end)
    rows = shown.amax(0).nonzero()[:, 0]
    assert len(rows) < 0.05 * SIZE * SIZE
    assert rows.max() - rows.min() < (mesh[:, 1].max() - mesh[:, 1].min()) / 2


def test_a_joint_is_a_disk_of_nine_pixels_and_a_bone_eight_wide() -> None:
    points = {
        index: at for name, at in {"nose": (20.0, 20.0), "right_ear": (80.0, 60.0)}.items() for index in HEAD[name]
    }
    points |= dict.fromkeys(HEAD["right_eye"], (80.0, 20.0)) | dict.fromkeys(HEAD["left_eye"], (-50.0, -50.0))
    points |= dict.fromkeys(HEAD["left_ear"], (-50.0, -50.0))
    shown = (skeleton_map(scattered(*((index, *at) for index, at in points.items())), SIZE) * 255).round()
    rows, columns = (shown == torch.tensor(JOINTS["right_ear"])[:, None, None]).all(0).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (56, 64, 76, 84)
    assert 8 <= shown[2, :, 50].count_nonzero() <= 9  # the bone's middle, level


def test_a_small_head_is_the_large_one_made_small(mesh: Tensor) -> None:
    large, small = skeleton_map(mesh, SIZE), skeleton_map(mesh / 4, SIZE // 4)
    drawn = resize(large.amax(0)[None, None], (SIZE // 4, SIZE // 4))[0] > 0
    assert not (small.amax(0)[None] > 0).logical_and(grow_mask(drawn.float(), 1) == 0).any()
    assert small.any()
