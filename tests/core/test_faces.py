"""Faces where they were put: the portrait of `astronaut`, moved by known similarities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture_core.faces import (
    ARCFACE_POINTS,
    FaceDetector,
    Sightings,
    choose_face,
    five_points,
    group_sightings,
    invert,
    load_face_detector,
    make_anchors,
    similarity_transform,
    tile_starts,
    transform,
    warp,
)
from magicapture_core.images import resize
from magicapture_core.types import Face, MagiCaptureError


def similarity(scale: float, degrees: float, x: float = 0.0, y: float = 0.0) -> Tensor:
    """[2,3]"""
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[cos, -sin, x], [sin, cos, y]])


def around(centre: tuple[float, float], scale: float, degrees: float) -> Tensor:
    """The similarity [2,3] that leaves `centre` where it is."""
    matrix, point = similarity(scale, degrees), torch.tensor([centre])
    return torch.cat([matrix[:, :2], (point - transform(point, matrix)).T], 1)


def face(left: float, top: float, side: float) -> Face:
    return Face(box=torch.tensor([left, top, left + side, top + side]))


def crowd(astronaut: Tensor, places: list[tuple[int, int, int]], size: tuple[int, int] = (600, 900)) -> Tensor:
    """The head of `astronaut` at each (left, top, side) on a smooth background."""
    colours = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(colours, size, mode="bilinear")[0] * 0.5 + 0.3
    for left, top, side in places:
        picture[:, top : top + side, left : left + side] = resize(astronaut[None, :, 20:220, 120:320], (side, side))[0]
    return picture


# --- with the networks -----------------------------------------------------------------------------------------------


def test_the_face_is_where_it_is(detector: FaceDetector, astronaut: Tensor) -> None:
    """The expected points were read off the photo by eye."""
    (found,) = detector.detect(astronaut)
    left, top, right, bottom = found.box.tolist()
    assert 165 < left < 190
    assert 55 < top < 85
    assert 265 < right < 290
    assert 165 < bottom < 185
    assert found.landmarks is not None
    by_eye = torch.tensor([(205.0, 104.0), (245.0, 106.0), (225.0, 130.0), (201.0, 140.0), (246.0, 142.0)])
    assert (found.landmarks - by_eye).norm(dim=1).max() < 6
    assert found.score > 0.8


@pytest.mark.parametrize(
    ("scale", "degrees"), [(1.0, 10.0), (1.0, -25.0), (1.5, 0.0), (0.5, 0.0), (0.3, 15.0), (2.0, -10.0), (1.0, 40.0)]
)
def test_landmarks_follow_a_known_similarity(
    detector: FaceDetector, astronaut: Tensor, scale: float, degrees: float
) -> None:
    matrix = around((225.0, 125.0), scale, degrees)
    moved = warp(astronaut[None], matrix[None], 512, shrink=max(1, round(1 / scale)))[0]
    (before,), (after,) = detector.detect(astronaut), detector.detect(moved)
    assert before.landmarks is not None
    assert after.landmarks is not None
    face_height = scale * float(before.box[3] - before.box[1])
    error = (transform(before.landmarks, matrix) - after.landmarks).norm(dim=1)
    assert error.max() < 0.03 * face_height + 0.5
    mesh_error = transform(detector.mesh(astronaut, before), matrix) - detector.mesh(moved, after)
    assert mesh_error.norm(dim=1).mean() < 0.03 * face_height + 0.5


def test_a_dark_photo_and_a_grey_one(detector: FaceDetector, astronaut: Tensor) -> None:
    (expected,) = detector.detect(astronaut)
    for changed in (astronaut * 0.15, astronaut.mean(0, keepdim=True).expand(3, -1, -1)):
        (found,) = detector.detect(changed)
        assert (found.box - expected.box).abs().max() < 6


def test_every_face_of_a_crowd_from_left_to_right(detector: FaceDetector, astronaut: Tensor) -> None:
    places = [(30, 40, 80), (200, 300, 60), (400, 100, 120), (600, 400, 70), (700, 60, 200)]
    found = detector.detect(crowd(astronaut, places))
    assert len(found) == 5
    for spotted, (left, top, side) in zip(found, places, strict=True):
        scale = side / 200  # the head was cut out at (120, 20), and the face is at about (225, 125)
        expected = torch.tensor([left + 105 * scale, top + 105 * scale])
        assert ((spotted.box[:2] + spotted.box[2:]) / 2 - expected).norm() < 0.1 * side


def test_no_face_no_find(detector: FaceDetector, astronaut: Tensor) -> None:
    noise = torch.rand(3, 300, 400, generator=torch.Generator().manual_seed(0))
    for picture in (noise, torch.zeros(3, 64, 64), torch.ones(3, 1, 1), astronaut[:, 300:, 300:], noise[:, :, :3]):
        assert detector.detect(picture) == []


@pytest.mark.parametrize("name", ["chelsea", "coffee", "coins"])
def test_a_cat_a_cup_and_coins_are_no_faces(detector: FaceDetector, name: str) -> None:
    from skimage import data

    picture = torch.from_numpy(getattr(data, name)()).float() / 255
    picture = picture.permute(2, 0, 1) if picture.dim() == 3 else picture.expand(3, -1, -1)
    assert detector.detect(picture) == []


def test_a_photo_larger_than_the_search(detector: FaceDetector, astronaut: Tensor) -> None:
    (expected,), (found,) = detector.detect(astronaut), detector.detect(resize(astronaut[None], (2048, 2048))[0])
    assert (found.box - expected.box * 4).abs().max() < 20
    assert found.landmarks is not None
    assert expected.landmarks is not None
    assert (found.landmarks - expected.landmarks * 4).norm(dim=1).max() < 12


def test_mesh_holds_the_five_points(detector: FaceDetector, astronaut: Tensor) -> None:
    (found,) = detector.detect(astronaut)
    mesh = detector.mesh(astronaut, found)
    assert mesh.shape == (468, 2)
    assert found.landmarks is not None
    assert (five_points(mesh) - found.landmarks).norm(dim=1).max() < 1


def test_missing_networks_name_the_remedy(tmp_path) -> None:
    with pytest.raises(MagiCaptureError, match="models get faces"):
        load_face_detector(tmp_path)


# --- without them ----------------------------------------------------------------------------------------------------


def test_anchors_by_hand() -> None:
    anchors = make_anchors(4, ((2, 1), (4, 2)))
    assert anchors.tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75], [0.5, 0.5], [0.5, 0.5]]
    assert len(make_anchors(128, ((8, 2), (16, 6)))) == 896  # BlazeFace's
    assert len(make_anchors(192, ((4, 1),))) == 2304


@pytest.mark.parametrize(("length", "tile"), [(192, 192), (100, 192), (193, 192), (1280, 213)])
def test_tiles_cover_the_picture_and_overlap_by_half(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    assert starts[0] == 0
    assert starts[-1] + tile >= length
    assert all(later - earlier <= tile / 2 for earlier, later in itertools.pairwise(starts))


def test_sightings_of_one_face_are_one_group() -> None:
    boxes = torch.tensor(
        [
            [0, 0, 10, 10],  # a face
            [1, 1, 11, 11],  # overlaps it
            [2, 5, 8, 10],  # cut off by a tile: lies in it
            [20, 0, 30, 10],  # another
            [5.0, 5, 5, 5],  # nothing, but must not hang
        ]
    )
    points = torch.cat([boxes.reshape(-1, 2, 2), torch.zeros(5, 6, 2)], 1)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95, 0.5])
    groups = group_sightings(Sightings(points=points, scores=scores))
    assert [group.scores.tolist() for group in groups] == [
        scores[[3]].tolist(),
        scores[:3].tolist(),
        scores[[4]].tolist(),
    ]


def test_choose_face_weighs_size_and_place() -> None:
    faces = [face(0, 0, 30), face(45, 45, 10), face(40, 40, 28)]
    assert choose_face(faces, 100, 100) == 2  # nearly as large as the first, and in the middle
    assert choose_face(faces[:2], 100, 100) == 0  # nine times as large beats the middle
    assert choose_face(faces, 100, 100, index=1) == 1
    with pytest.raises(MagiCaptureError, match="no face 3: found 3"):
        choose_face(faces, 100, 100, index=3)


def test_similarity_transform_equals_umeyama() -> None:
    from skimage.transform import SimilarityTransform

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        source = torch.randn(5, 2, generator=generator, dtype=torch.float64) * 40 + 60
        target = transform(source, similarity(1.7, 130, 5, -9).double()) + torch.randn(5, 2, generator=generator)
        expected = SimilarityTransform.from_estimate(source.numpy(), target.numpy()).params[:2]
        torch.testing.assert_close(similarity_transform(source, target), torch.from_numpy(expected))


def test_similarity_transform_never_mirrors() -> None:
    mirrored = ARCFACE_POINTS * torch.tensor([-1.0, 1.0])
    assert similarity_transform(ARCFACE_POINTS, mirrored)[:, :2].det() > 0


def test_invert_undoes_a_batch() -> None:
    matrices = torch.stack([similarity(2.0, 30, 4, 5), similarity(0.5, -80, -1, 7)])
    points = torch.randn(2, 6, 2)
    torch.testing.assert_close(transform(transform(points, matrices), invert(matrices)), points, atol=1e-5, rtol=0)


def test_warp_moves_pixels_by_its_matrix() -> None:
    """Colours are coordinates, so what is found at a point of the result says where it came from."""
    steps = torch.arange(64) + 0.5
    picture = torch.stack(torch.meshgrid(steps, steps, indexing="xy"))[None]
    matrix = similarity(0.6, 25, 20, 4)
    found = warp(picture, matrix[None], 48)[0]
    targets = torch.tensor([(24.5, 20.5), (30.5, 12.5), (20.5, 30.5)])
    sources = transform(targets, invert(matrix))
    for (x, y), source in zip(targets.int().tolist(), sources, strict=True):
        torch.testing.assert_close(found[:, y, x], source, atol=1e-3, rtol=0)


def test_warp_shrinks_without_aliasing_and_without_a_shift() -> None:
    board = torch.zeros(1, 1, 128, 128)
    board[..., ::2] = 1  # stripes of one pixel: grey from afar
    matrix = similarity(1 / 8, 0)[None]
    assert warp(board, matrix, 16, shrink=8).sub(0.5).abs().max() < 1e-6
    ramp = torch.arange(128.0).expand(1, 1, 128, 128)
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(warp(ramp, matrix, 16, shrink=4)[inside], warp(ramp, matrix, 16)[inside])
    uneven = torch.arange(131.0).expand(1, 1, 129, 131)
    torch.testing.assert_close(warp(uneven, matrix, 12, shrink=4)[inside], warp(ramp, matrix, 12)[inside])


def test_warp_pads_as_asked() -> None:
    white = torch.ones(1, 1, 8, 8)
    shifted = similarity(1.0, 0, x=4)[None]
    assert warp(white, shifted, 8).min() == 1
    assert warp(white, shifted, 8, padding="zeros")[..., :3].max() == 0


def test_warp_is_differentiable_in_images_and_matrix() -> None:
    images = torch.rand(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    matrices = torch.stack([similarity(1.1, 7, 0.3, 0.2), similarity(0.9, -5, 0.4, 0.6)]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda image, matrix: warp(image, matrix, 4), (images, matrices))
