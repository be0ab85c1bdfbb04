"""Alignment and paste against analytic pictures, restorers against their original classes, order against the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from magicapture_core.face_outcomes import Outcome, describe, mean_likeness
from magicapture_core.faces import FaceDetector, invert, transform
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.likeness import likeness_to
from magicapture_core.restore import (
    FACE_SIZE,
    FEATHER,
    FFHQ_BOX,
    FFHQ_POINTS,
    OVAL_CENTRE,
    OVAL_RADII,
    FaceRestorer,
    Guard,
    align_face,
    face_mask,
    load_restorer,
    match_colour,
    report,
    resample,
    restore_and_upscale,
    restore_faces,
)
from magicapture_core.types import Face, MagiCaptureError
from tests.small import small_restoreformer

HEIGHT, WIDTH = 300, 260
LEVEL = 1 / 255
# size in pixels from hairline to chin, rotation in degrees, where the middle of the FFHQ frame lies in the picture
FACES = [
    pytest.param(size, angle, centre, id=f"{size}px-{angle}deg-{place}")
    for size in (20, 60, 160, 400)
    for angle, centre, place in (
        (0, (130.0, 150.0), "middle"),
        (25, (131.3, 147.8), "middle"),
        (-70, (258.0, 4.0), "corner"),
        (180, (2.5, 299.0), "edge"),
    )
]


def place_face(size: float, angle: float, centre: tuple[float, float]) -> tuple[Face, Tensor]:
    """A face whose landmarks are exactly FFHQ's, moved, and the matrix [2,3] from the picture to the FFHQ frame."""
    scale, turn = size / 320, math.radians(angle)
    linear = scale * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    offset = torch.tensor(centre) - linear @ torch.tensor([256.0, 256.0])
    to_picture = torch.cat([linear, offset[:, None]], 1)
    landmarks = transform(FFHQ_POINTS, to_picture)
    corners = transform(FFHQ_BOX.reshape(2, 2), to_picture)
    box = torch.cat([corners.amin(0), corners.amax(0)])
    return Face(box=box, landmarks=landmarks), invert(to_picture)


def pixel_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


def waves(points: Tensor) -> Tensor:
    """A smooth picture [3,H,W] over the FFHQ frame, points [H,W,2]; 400 pixels of it are one wave."""
    phases = points / 400 * 2 * math.pi
    return 0.5 + 0.4 * torch.stack([phases[..., 0].sin(), phases[..., 1].cos(), (phases.sum(-1) / 2).sin()])


def photo() -> Tensor:
    """The astronaut [3,512,512], NASA, public domain."""
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255


def pasted(*given: Any, **options: Any) -> Tensor:
    return restore_faces(*given, **options)[0]


def finished(*given: Any, **options: Any) -> Tensor:
    return restore_and_upscale(*given, **options)[0]


ASTRONAUT = torch.tensor([(204, 100.7), (247.3, 103.3), (226, 128.3), (206, 142.7), (242.7, 142.7)])


def astronaut(factor: float = 1.0) -> Face:
    return Face(box=torch.tensor([180.0, 70.0, 272.0, 180.0]) * factor, landmarks=ASTRONAUT * factor)


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "angle", "centre"), FACES)
def test_alignment_shows_the_picture_in_the_ffhq_frame(size, angle, centre) -> None:
    face, to_frame = place_face(size, angle, centre)
    image = waves(transform(pixel_centres(HEIGHT, WIDTH), to_frame))
    aligned, matrix = align_face(image, face)
    torch.testing.assert_close(matrix, to_frame, atol=2e-3, rtol=1e-4)
    points = pixel_centres(FACE_SIZE, FACE_SIZE)
    seen = transform(points, invert(to_frame))
    pixels_inside = ((seen > 1.5) & (seen < torch.tensor([WIDTH, HEIGHT]) - 1.5)).all(-1)
    assert pixels_inside.sum() > 1000
    # one wave is 25 pixels of the smallest face: bicubic interpolation is good to one level there
    assert (aligned[0] - waves(points))[:, pixels_inside].abs().max() < LEVEL * (2 if size == 20 else 1)


@pytest.mark.parametrize(("size", "angle", "centre"), FACES)
def test_what_a_restorer_draws_lands_in_its_place_under_the_mask(size, angle, centre) -> None:
    face, to_frame = place_face(size, angle, centre)
    image = torch.full((3, HEIGHT, WIDTH), 0.5)
    restored = pasted(image, [face], lambda aligned: waves(pixel_centres(FACE_SIZE, FACE_SIZE))[None])
    points = transform(pixel_centres(HEIGHT, WIDTH), to_frame)
    radius = ((points - OVAL_CENTRE) / OVAL_RADII).norm(dim=-1)
    expected = image + smooth((1 - radius) / FEATHER) * (waves(points) - image)
    assert (restored - image).abs().max() > 0.1
    assert (restored - expected).abs().max() < LEVEL


def smooth(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return 3 * x**2 - 2 * x**3


@pytest.mark.parametrize(("size", "angle", "centre"), FACES)
def test_a_restorer_that_changes_nothing_changes_nothing(size, angle, centre) -> None:
    image = photo()[:, 60:360, 100:360]
    face, _ = place_face(size, angle, centre)
    assert (pasted(image, [face], lambda aligned: aligned) - image).abs().max() < 1e-6


def test_a_box_alone_is_framed_like_an_upright_face() -> None:
    face, to_frame = place_face(100, 0, (130.0, 150.0))
    image = waves(transform(pixel_centres(HEIGHT, WIDTH), to_frame))
    _, matrix = align_face(image, Face(box=face.box))
    torch.testing.assert_close(matrix, to_frame, atol=1e-2, rtol=1e-3)


def test_a_wide_box_is_not_stretched() -> None:
    _, matrix = align_face(torch.rand(3, 64, 64), Face(box=torch.tensor([0.0, 20.0, 60.0, 40.0])))
    assert matrix[0, 0] == pytest.approx(float(matrix[1, 1]))
    torch.testing.assert_close(transform(torch.tensor([[30.0, 30.0]]), matrix), torch.tensor([[256.0, 310.0]]))


def test_alignment_to_another_size_is_the_same_frame() -> None:
    image, (face, _) = photo(), place_face(200, 10, (220.0, 120.0))
    large, matrix = align_face(image, face)
    small, half = align_face(image, face, size=256)
    torch.testing.assert_close(half, matrix / 2)
    assert (F.avg_pool2d(large, 2) - small).abs().mean() < LEVEL


@pytest.mark.parametrize("angle", [0, 30, 45])
def test_shrinking_averages_and_does_not_pick(angle: float) -> None:
    """A chessboard of single pixels has no detail left at a third of its size: it is grey."""
    board = (pixel_centres(900, 900).long().sum(-1) % 2).float().expand(1, 3, -1, -1)
    turn = math.radians(angle)
    linear = 3.0 * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = torch.cat([linear, torch.tensor([[450.0], [450.0]]) - linear @ torch.tensor([[100.0], [100.0]])], 1)
    inner = resample(board, matrix, (200, 200))[..., 70:130, 70:130]
    assert (inner - 0.5).abs().max() < 0.12  # upright, one of nine squares is left over: 1/18; picking gives 1/2


# -- mask -------------------------------------------------------------------------------------------------------------


def test_a_constant_colour_shows_the_footprint_of_the_mask() -> None:
    """By hand: upright at half size the oval's middle lies 16 below the frame's, its radii are 87.5 and 110."""
    face, _ = place_face(160, 0, (72.0, 122.0))
    image = torch.full((3, HEIGHT, WIDTH), 0.25)
    colour = torch.tensor([1.0, 0.75, 0.0]).reshape(3, 1, 1)
    change = pasted(image, [face], lambda aligned: colour.expand_as(aligned)) - image
    points = pixel_centres(HEIGHT, WIDTH)
    radius = (((points[..., 0] - 72) / 87.5) ** 2 + ((points[..., 1] - 138) / 110) ** 2).sqrt()
    assert (change[:, radius >= 1] == 0).all()
    assert (change[:2, radius < 0.98] > 0).all()
    core = (change - (colour - 0.25))[:, radius <= 1 - FEATHER]
    assert core.abs().max() < 1e-4
    soft_middle = (radius - (1 - FEATHER / 2)).abs() < 1e-3
    assert soft_middle.any()
    assert (change[0, soft_middle] / 0.75 - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("centre", [(0.0, 150.0), (260.0, 150.0), (130.0, 0.0), (130.0, 300.0)])
def test_a_face_cut_by_the_picture_has_no_seam_along_the_cut(centre: tuple[float, float]) -> None:
    face, to_frame = place_face(120, 0, centre)
    image = torch.full((3, HEIGHT, WIDTH), 0.25)
    restored = pasted(image, [face], lambda aligned: torch.ones_like(aligned))
    radius = ((transform(pixel_centres(HEIGHT, WIDTH), to_frame) - OVAL_CENTRE) / OVAL_RADII).norm(dim=-1)
    core = radius < 1 - FEATHER
    border = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (core & border).any()
    assert restored[:, core].min() > 1 - 1e-4


def test_a_face_outside_of_the_picture_leaves_it_as_it_is() -> None:
    image = photo()
    face, _ = place_face(40, 0, (-200.0, 900.0))
    assert torch.equal(pasted(image, [face], lambda aligned: 1 - aligned), image)


def test_pixels_outside_of_the_masks_keep_every_bit() -> None:
    image = photo()
    faces = [astronaut(), place_face(90, 40, (500.0, 400.0))[0]]
    restored = pasted(image, faces, lambda aligned: 1 - aligned)
    masks = torch.cat([face_mask(align_face(image, face)[1], (512, 512)) for face in faces]).amax(0)
    assert 0.01 < (masks > 0).float().mean() < 0.2
    assert torch.equal(restored[:, masks == 0], image[:, masks == 0])
    assert (restored - image)[:, masks > 0.5].abs().mean() > 0.2
    assert restored.min() >= 0
    assert restored.max() <= 1


def test_a_restorer_that_fails_cannot_reach_beyond_the_mask() -> None:
    image = photo()
    restored = pasted(image, [astronaut()], lambda aligned: torch.full_like(aligned, torch.nan))
    mask = face_mask(align_face(image, astronaut())[1], (512, 512))[0]
    assert torch.equal(restored[:, mask == 0], image[:, mask == 0])


def test_the_picture_given_is_not_changed() -> None:
    image = photo()
    before = image.clone()
    pasted(image, [astronaut()], lambda aligned: 1 - aligned)
    assert torch.equal(image, before)


def test_a_region_confines_the_change() -> None:
    image, region = photo(), torch.zeros(1, 512, 512)
    region[:, :, :226] = 1
    restored = pasted(image, [astronaut()], lambda aligned: 1 - aligned, region)
    assert torch.equal(restored[:, :, 226:], image[:, :, 226:])
    assert (restored - image)[:, 110:150, 210:226].abs().mean() > 0.2


def test_progress_counts_the_faces() -> None:
    seen = []
    faces = [astronaut(), place_face(50, 0, (400.0, 400.0))[0]]
    pasted(photo(), faces, lambda aligned: aligned, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


# -- order ------------------------------------------------------------------------------------------------------------


def test_restoring_after_upscaling_keeps_more_of_what_the_restorer_knows() -> None:
    """The astronaut at a quarter of her size; the restorer knows the true face. The other order is done by hand."""
    truth = photo()
    small = F.interpolate(truth[None], scale_factor=0.25, mode="bicubic", antialias=True)[0].clamp(0, 1)
    known = align_face(truth, astronaut())[0]
    after = finished(small, [astronaut(0.25)], lambda aligned: known, factor=4)
    first = pasted(small, [astronaut(0.25)], lambda aligned: known)
    before = finished(first, [], factor=4)
    never = finished(small, [], factor=4)
    face = (slice(None), slice(90, 160), slice(195, 255))
    error = {
        name: float((image - truth)[face].abs().mean())
        for name, image in {"before": before, "after": after, "never": never}.items()
    }
    assert error["after"] < 0.5 * error["before"]
    assert error["after"] < 0.5 * error["never"]


def test_pixels_outside_of_the_masks_are_those_of_plain_upscaling() -> None:
    image, face = photo()[:, :200, 100:331], astronaut()
    face = Face(box=face.box, landmarks=ASTRONAUT - torch.tensor([100.0, 0.0]))
    plain = finished(image, [], factor=1.37)
    restored = finished(image, [face], lambda aligned: 1 - aligned, factor=1.37)
    assert restored.shape == (3, 274, 316)
    changed = (restored != plain).any(0).nonzero()
    # by hand: 3.08 pixels of the frame are one of the picture, so the oval is 2 x 78 across and 2 x 98 down
    across, down = ((changed.amax(0) - changed.amin(0)).flip(0)).tolist()
    assert across == pytest.approx(156, abs=4)
    assert down == pytest.approx(196, abs=4)
    middle = changed.float().mean(0).flip(0) / 1.37
    torch.testing.assert_close(middle, torch.tensor([126.0, 119.0]), atol=3, rtol=0)


def test_without_a_restorer_and_at_factor_one_every_bit_stays() -> None:
    image = photo()
    assert torch.equal(finished(image, [astronaut()], factor=1), image)
    assert report(None, None, None, [([], [])]) == [
        "face restorer: none; upscaler: bicubic",
        "picture 1: faces left alone, there is no face restorer",
    ]


def test_a_picture_without_a_face_passes_through_and_says_so() -> None:
    image = photo()
    assert torch.equal(finished(image, [], lambda aligned: 1 - aligned, factor=1), image)
    assert describe([], []) == "no face found, nothing restored"


def test_a_face_outside_of_the_region_is_not_even_computed_and_counted() -> None:
    image, region = photo(), torch.zeros(1, 512, 512)
    region[:, :300] = 1
    faces = [astronaut(), place_face(60, 0, (400.0, 450.0))[0]]
    called = []
    restored, outcomes = restore_and_upscale(image, faces, lambda x: called.append(1) or 1 - x, factor=1, region=region)
    assert len(called) == 1
    assert torch.equal(restored[:, 300:], image[:, 300:])
    assert describe(faces, outcomes) == "1 face restored (face 0: 110 px), 1 face outside of the mask left alone"
    outcomes = restore_and_upscale(image, faces, lambda x: x, factor=1)[1]
    assert describe(faces, outcomes) == "2 faces restored (face 0: 110 px; face 1: 60 px)"


def test_a_region_grows_with_the_picture() -> None:
    image, region = photo(), torch.zeros(1, 512, 512)
    region[:, :, :226] = 1
    restored = finished(image, [astronaut()], lambda aligned: 1 - aligned, factor=2, region=region)
    plain = finished(image, [], factor=2)
    assert torch.equal(restored[:, :, 456:], plain[:, :, 456:])
    assert (restored - plain)[:, 220:300, 420:450].abs().mean() > 0.2


# -- which faces ------------------------------------------------------------------------------------------------------


def two_faces() -> list[Face]:
    return [astronaut(), place_face(60, 0, (400.0, 450.0))[0]]


@pytest.mark.parametrize(("face_index", "fates"), [(0, "1 0"), (1, "0 1"), (-1, "1 1")])
def test_a_chosen_face_alone_is_restored(face_index: int, fates: str) -> None:
    image, faces = photo(), two_faces()
    restored, outcomes = restore_and_upscale(image, faces, lambda x: 1 - x, factor=1, face_index=face_index)
    wanted = [bool(int(flag)) for flag in fates.split()]
    assert [outcome.fate == "restored" for outcome in outcomes] == wanted
    assert [bool((restored != image)[:, rows, columns].any()) for rows, columns in (UPPER, LOWER)] == wanted


UPPER, LOWER = (slice(0, 250), slice(100, 350)), (slice(380, 512), slice(350, 450))


@pytest.mark.parametrize(("count", "numbers"), [(1, "number 0"), (2, "numbers 0 to 1 from the left")])
def test_a_face_that_is_not_there_is_told(count: int, numbers: str) -> None:
    image, faces = photo(), two_faces()[:count]
    restored, outcomes = restore_and_upscale(image, faces, lambda x: 1 - x, factor=1, face_index=2)
    assert torch.equal(restored, image)
    found = "1 face" if count == 1 else f"{count} faces"
    assert describe(faces, outcomes) == f"{found} found, {numbers}; face_index names none of them, nothing restored"


# -- likeness ---------------------------------------------------------------------------------------------------------


def brightness(image: Tensor, face: Face) -> float:
    """A likeness to check by hand: how bright the middle of the face is."""
    x, y = face.box.reshape(2, 2).mean(0).int().tolist()
    return float(image[:, y, x].mean())


def darker(by: float) -> Any:
    return lambda aligned: aligned - by


@pytest.mark.parametrize("factor", [1.0, 1.37, 2.0])
def test_a_face_that_lost_the_person_is_put_back_to_the_byte(factor: float) -> None:
    """The left face falls by 0.3 and is put back; the right one, in the same picture, is a stranger's and restored."""
    image, faces = torch.full((3, 500, 600), 0.5), [place_face(100, 0, (150.0, 150.0))[0]]
    faces.append(place_face(100, 0, (420.0, 330.0))[0])
    image[:, :, 300:] = 0.4
    falls = iter([0.3, 0.3])
    guard = Guard(likeness=brightness, max_loss=0.1)
    restored, outcomes = restore_and_upscale(
        image, faces, lambda aligned: aligned - next(falls), factor=factor, guard=guard
    )
    plain = finished(image, [], factor=factor)
    alone = finished(image, faces[1:], darker(0.3), factor=factor)
    assert torch.equal(restored, alone)
    left = (slice(None), slice(None), slice(0, round(280 * factor)))
    assert torch.equal(restored[left], plain[left])
    assert not torch.equal(restored, plain)
    assert [outcome.fate for outcome in outcomes] == ["put back", "restored"]
    known, stranger = outcomes
    assert (known.before, known.after, known.finished) == pytest.approx((0.5, 0.2, 0.5), abs=1e-3)
    assert (stranger.before, stranger.after) == (None, None)
    assert mean_likeness(outcomes) == pytest.approx((0.5, 0.5), abs=1e-3)
    assert describe(faces, outcomes) == (
        "1 face restored (face 1: 100 px, less like the reference, not compared), "
        "1 face put back as it was (face 0: 100 px, likeness 0.500 -> 0.200)"
    )


@pytest.mark.parametrize(("face_index", "fates"), [(-1, ["restored", "restored"]), (0, ["put back", "not chosen"])])
def test_of_several_the_face_most_like_the_reference_is_guarded(face_index: int, fates: list[str]) -> None:
    """The right one before anything is restored, though the left one falls and the right one gains; unless the left
    one was chosen."""
    image, faces = torch.full((3, 500, 600), 0.5), [place_face(100, 0, (150.0, 150.0))[0]]
    image[:, :, 300:] = 0.6
    faces.append(place_face(100, 0, (420.0, 330.0))[0])
    changes = iter([-0.3, 0.1])
    options: dict[str, Any] = {"factor": 1, "face_index": face_index, "guard": Guard(likeness=brightness)}
    _, outcomes = restore_and_upscale(image, faces, lambda aligned: aligned + next(changes), **options)
    assert [outcome.fate for outcome in outcomes] == fates
    compared = (0.6, 0.7) if face_index == -1 else (0.5, 0.5)
    assert mean_likeness(outcomes) == pytest.approx(compared, abs=1e-3)


@pytest.mark.parametrize(("max_loss", "fate"), [(0.0, "put back"), (0.24, "put back"), (0.26, "restored")])
def test_the_threshold_is_the_loss_that_is_allowed(max_loss: float, fate: str) -> None:
    face = place_face(100, 0, (150.0, 150.0))[0]
    guard = Guard(likeness=brightness, max_loss=max_loss)
    _, [outcome] = restore_faces(torch.full((3, 300, 300), 0.5), [face], darker(0.25), guard=guard)
    assert outcome.fate == fate


def test_a_face_that_gains_or_stays_is_never_put_back() -> None:
    face, image = place_face(100, 0, (150.0, 150.0))[0], torch.full((3, 300, 300), 0.5)
    for change in (-0.2, 0.0):
        _, [outcome] = restore_faces(image, [face], darker(change), guard=Guard(likeness=brightness, max_loss=0.0))
        assert outcome.fate == "restored"


def test_a_restorer_that_fails_is_put_back() -> None:
    image = photo()
    restored, [outcome] = restore_faces(
        image, [astronaut()], lambda x: torch.full_like(x, torch.nan), guard=Guard(likeness=brightness, max_loss=2.0)
    )
    assert outcome.fate == "put back"
    assert torch.equal(restored, image)


def test_faces_that_are_not_restored_are_not_compared() -> None:
    compared = []
    guard = Guard(likeness=lambda image, face: compared.append(face) or 0.5)
    faces = two_faces()
    outcomes = restore_and_upscale(photo(), faces, lambda x: x, factor=1, face_index=1, guard=guard)[1]
    assert len(compared) == 2
    assert all(torch.equal(face.box, faces[1].box) for face in compared)
    assert (outcomes[0].before, outcomes[0].after) == (None, None)
    assert mean_likeness(outcomes) == (0.5, 0.5)


def test_the_report_says_what_was_compared() -> None:
    restorer, faces = FaceRestorer(descriptor=LittleMemory(1)), [astronaut()]
    unknown, known = Outcome(fate="restored"), Outcome(fate="put back", before=0.5, after=0.25)
    guard = Guard(likeness=brightness, max_loss=0.125)
    lines = report(restorer, None, None, [(faces, [unknown]), ([], [])])
    assert lines[1:3] == ["picture 1: 1 face restored (110 px)", "picture 2: no face found, nothing restored"]
    assert lines[3].startswith("likeness: not checked; give a face recogniser")
    lines = report(restorer, None, guard, [(faces, [known]), (faces, [Outcome(fate="restored", before=0, after=1)])])
    assert lines[1] == "picture 1: 0 faces restored, 1 face put back as it was (110 px, likeness 0.500 -> 0.250)"
    assert lines[3] == (
        "likeness: 0.250 before, 0.750 in the finished pictures, the mean of 2 faces; "
        "what loses more than 0.125 is put back"
    )
    assert report(restorer, None, guard, [([], [])])[-1] == "likeness: no face was restored, nothing to compare"


def test_a_recogniser_sees_who_was_lost(detector: FaceDetector) -> None:
    """The whole way: an IResNet, the astronaut's own photo as the reference, faces found by the detector once."""
    image = photo()
    torch.manual_seed(0)
    recogniser = IResNet(BLOCKS[18], 8, num_features=16).eval().requires_grad_(False)
    guard = Guard(likeness=likeness_to(recogniser, detector, [image]), max_loss=0.02)
    faces = detector.detect(image)
    kept, [same] = restore_and_upscale(image, faces, lambda x: x, factor=2, guard=guard)
    assert same.before == same.after == pytest.approx(1, abs=2e-3)
    assert same.fate == "restored"
    back, [lost] = restore_and_upscale(image, faces, lambda x: x.flip(2), factor=2, guard=guard)
    assert lost.fate == "put back"
    assert lost.after is not None
    assert lost.after < 0.97
    assert torch.equal(back, finished(image, [], factor=2))
    assert torch.equal(kept, back)


# -- colour -----------------------------------------------------------------------------------------------------------


def test_a_shift_of_colour_is_taken_back_by_hand() -> None:
    """A constant is as broad as can be: nothing is left of it."""
    faces = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    shift = torch.tensor([0.2, 0.0, -0.125]).reshape(3, 1, 1)
    assert (match_colour(lambda x: x + shift)(faces) - faces).abs().max() < 1e-5
    assert torch.equal(match_colour(lambda x: x)(faces), faces)


@pytest.mark.parametrize(("period", "left"), [(16, 1.0), (64, 0.993), (150, 0.593), (300, 0.201)])
def test_what_is_finer_stays_as_a_gaussian_says(period: float, left: float) -> None:
    """Of a wave, 1 - exp(-2 (pi 32 / period)^2) is left in the middle of the face, whatever its phase."""
    assert left == pytest.approx(1 - math.exp(-2 * (math.pi * 32 / period) ** 2), abs=1e-3)
    phase = (torch.arange(512) + 0.5 - 256) / period * 2 * math.pi
    faces = torch.full((1, 3, 512, 512), 0.5)
    made = match_colour(lambda x: x + 0.1 * phase.cos())(faces) - faces
    assert made[0, 1, 288, 255:257].mean() == pytest.approx(0.1 * left, abs=4e-3)


def test_colours_of_a_portrait_come_back_and_its_detail_stays() -> None:
    """The astronaut, blurred; the restorer knows the true face and makes it warmer and unevenly lit."""
    truth = photo()
    small = F.interpolate(truth[None], scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    poor = F.interpolate(small, size=(512, 512), mode="bicubic").clamp(0, 1)[0]
    known = align_face(truth, astronaut())[0]
    warm = torch.tensor([1.15, 1.0, 0.85]).reshape(3, 1, 1)
    side = torch.linspace(-0.05, 0.05, 512)
    face = (slice(None), slice(90, 160), slice(195, 255))

    def error(image: Tensor) -> float:
        return float((image - truth)[face].abs().mean()) * 255

    def shifting(aligned: Tensor) -> Tensor:
        return (known * warm + side).clamp(0, 1)

    assert error(pasted(poor, [astronaut()], match_colour(shifting))) < 0.3 * error(
        pasted(poor, [astronaut()], shifting)
    )
    faithful = error(pasted(poor, [astronaut()], lambda aligned: known))
    assert error(pasted(poor, [astronaut()], match_colour(lambda aligned: known))) < faithful + 0.2


# -- odd sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (513, 771)])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
def test_any_size_is_finished(detector: FaceDetector, size: tuple[int, int], factor: float) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 0.1
    faces = detector.detect(image)
    larger, outcomes = restore_and_upscale(image, faces, lambda x: 1 - x, factor=factor)
    assert outcomes == []
    assert larger.shape[1:] == (round(size[0] * factor), round(size[1] * factor))
    assert factor > 1 or torch.equal(larger, image)


def test_a_face_is_restored_in_an_odd_size(detector: FaceDetector) -> None:
    image = F.interpolate(photo()[None], size=(513, 771), mode="bicubic").clamp(0, 1)[0]
    restored, outcomes = restore_and_upscale(image, detector.detect(image), lambda x: 1 - x, factor=1)
    assert [outcome.fate for outcome in outcomes] == ["restored"]
    assert 0.01 < (restored != image).any(0).float().mean() < 0.2


# -- restorers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gfpgan() -> Any:
    """GFPGAN's own class with an eighth of the channels, behind the descriptor that spandrel gives the whole one."""
    pytest.importorskip("spandrel")
    from spandrel import ImageModelDescriptor
    from spandrel.architectures.GFPGAN import GFPGAN, GFPGANArch

    torch.manual_seed(0)
    model = GFPGAN(narrow=0.125)  # pyright: ignore[reportArgumentType]
    torch.nn.init.ones_(model.stylegan_decoder.style_conv1.weight)  # how strong the noise is; 0 in a fresh network
    return ImageModelDescriptor(
        model,
        model.state_dict(),
        architecture=GFPGANArch(),
        purpose="FaceSR",
        tags=[],
        supports_half=False,
        supports_bfloat16=True,
        scale=1,
        input_channels=3,
        output_channels=3,
        call_fn=lambda net, images: net(images)[0],
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_restoreformer_comes_whole_out_of_a_file(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("spandrel")
    path = tmp_path / f"RestoreFormer{suffix}"
    model = small_restoreformer(path)
    faces = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    restorer = load_restorer(path)
    assert restorer.architecture == "RestoreFormer"
    assert not restorer.has_fidelity
    restored = restorer(faces)
    torch.testing.assert_close(restored, (model(faces * 2 - 1)[0] / 2 + 0.5).clamp(0, 1))
    assert torch.equal(restored, restorer(faces))
    assert restored.std() > 0.01


@torch.no_grad()
@pytest.mark.full
def test_gfpgan_at_true_size_comes_whole_out_of_a_file(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    from spandrel.architectures.GFPGAN import GFPGAN

    model = GFPGAN().eval()
    path = tmp_path / "GFPGANv1.4.pth"
    torch.save({"params_ema": model.state_dict()}, path)
    restorer = load_restorer(path)
    path.unlink()  # 350 MB, which pytest would keep
    faces = torch.rand(1, 3, 512, 512)
    signed = model(faces * 2 - 1, return_rgb=False, randomize_noise=False)[0]
    torch.testing.assert_close(restorer(faces), (signed / 2 + 0.5).clamp(0, 1))


@pytest.mark.full
def test_codeformer_listens_to_fidelity(tmp_path: Path) -> None:
    """Where its package is installed, whose licence forbids commercial use."""
    pytest.importorskip("spandrel_extra_arches")
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer  # pyright: ignore[reportMissingImports]

    path = tmp_path / "codeformer.pth"
    torch.save({"params_ema": CodeFormer().state_dict()}, path)
    restorer = load_restorer(path)
    path.unlink()  # 380 MB, which pytest would keep
    assert restorer.has_fidelity
    faces = torch.rand(1, 3, 512, 512)
    assert not torch.equal(restorer.with_fidelity(0.0)(faces), restorer.with_fidelity(1.0)(faces))


def test_the_restored_face_comes_back_in_the_picture(gfpgan) -> None:
    """The whole way with a real network: what it made of the aligned face is what stands in the picture."""
    image, restorer = photo(), FaceRestorer(descriptor=gfpgan)
    aligned, matrix = align_face(image, astronaut())
    restored = pasted(image, [astronaut()], restorer)
    change = resample(restorer(aligned) - aligned, matrix, (512, 512))[0]
    core = face_mask(matrix, (512, 512))[0] == 1
    torch.testing.assert_close(restored[:, core], (image + change).clamp(0, 1)[:, core], atol=1e-4, rtol=0)
    assert change[:, core].abs().mean() > 0.05


class LittleMemory(torch.nn.Module):
    """Stands where spandrel's descriptor does, and has memory for faces of `limit` pixels."""

    architecture = type("", (), {"name": "LittleMemory"})
    device = torch.device("cpu")

    def __init__(self, limit: int, message: str = "CUDA out of memory. Tried to allocate") -> None:
        super().__init__()
        self.limit, self.message, self.model = limit, message, None

    def forward(self, faces: Tensor) -> Tensor:
        if faces.shape[-1] > self.limit:
            raise RuntimeError(self.message)
        return faces


def test_a_face_that_does_not_fit_into_memory_is_one_line() -> None:
    with pytest.raises(MagiCaptureError, match=r"^face restorer: out of memory with one face of 512 pixels; close"):
        pasted(photo(), [astronaut()], FaceRestorer(descriptor=LittleMemory(256)))
    with pytest.raises(RuntimeError, match="shapes"):
        pasted(photo(), [astronaut()], FaceRestorer(descriptor=LittleMemory(256, "shapes do not fit")))


# -- what users pick by mistake ---------------------------------------------------------------------------------------


def test_an_upscaler_is_refused_as_a_face_restorer(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    from spandrel.architectures.Compact import Compact

    torch.save(Compact(num_feat=8, num_conv=1, upscale=2).state_dict(), tmp_path / "realesr.pth")
    with pytest.raises(
        MagiCaptureError, match=r"^realesr.pth: RealESRGAN Compact is no face restorer; .* upscale model$"
    ):
        load_restorer(tmp_path / "realesr.pth")


def test_a_gfpgan_1_0_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    """It has the names that GFPGAN is recognised by, and layers that spandrel does not build."""
    pytest.importorskip("spandrel")
    names = ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight", "conv_body_first.0.weight")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "GFPGANv1.safetensors")
    with pytest.raises(MagiCaptureError, match=r"^GFPGANv1.safetensors: .*GFPGANv1.3.pth"):
        load_restorer(tmp_path / "GFPGANv1.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.pth", b"PK\x03\x04 and no more", "cannot be read"),
        ("cut.safetensors", b"\x00" * 20, "cannot be read"),
        ("page.pth", b"<html>not found</html>", "cannot be read"),
        ("model.onnx", b"", "end in .pth or .safetensors"),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    pytest.importorskip("spandrel")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MagiCaptureError, match=f"^{name}: .*{message}") as caught:
        load_restorer(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    with pytest.raises(MagiCaptureError, match=r"GFPGANv1.4.pth: there is no such file"):
        load_restorer(tmp_path / "GFPGANv1.4.pth")


def test_an_unknown_network_is_named_with_what_is_known(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "mine.safetensors")
    with pytest.raises(MagiCaptureError, match=r"^mine.safetensors: .*GFPGAN and RestoreFormer"):
        load_restorer(tmp_path / "mine.safetensors")


def test_a_file_with_code_in_it_runs_nothing(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save({"params_ema": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(MagiCaptureError, match=r"^trap.pth: cannot be read"):
        load_restorer(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)
