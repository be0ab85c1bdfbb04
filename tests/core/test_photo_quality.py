"""What is told of a photo: sound pictures are below the limits, the same ones spoilt are above them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import magicapture_core
from magicapture_core.faces import FaceDetector
from magicapture_core.images import from_pil, load_photo, resize, to_pil
from magicapture_core.painting import soften
from magicapture_core.photo_quality import blur, face_warnings, find_same, fingerprint, turn
from magicapture_core.types import Face
from portraitbench.parameters import Nuisance, Style
from portraitbench.world import compose, identity, random, render

SAMPLES = sorted((Path(magicapture_core.__file__).parent / "tiny" / "samples").glob("[ps]*_*.jpg"))
WHOLE = torch.tensor([0.0, 0, 112, 112])


def softened(image: Tensor, sigma: float) -> Tensor:
    return torch.cat([soften(channel[None], math.ceil(sigma * 4)) for channel in image])


def shaken(image: Tensor, length: int) -> Tensor:
    """Blurred along the rows alone."""
    kernel = torch.full((1, 1, 1, length), 1 / length)
    padded = F.pad(image[:, None], (length // 2, length - 1 - length // 2, 0, 0), mode="replicate")
    return F.conv2d(padded, kernel)[:, 0]


def saved(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    to_pil(image).save(file, "JPEG", quality=quality)
    return from_pil(Image.open(file))


def drawn(index: int, skin: float, turned: float = 0.0) -> Tensor:
    """Someone of PortraitBench, with skin from 0, light, to 1, dark -> [3,384,384]."""
    rng = random("test", "photo quality", index)
    who, how, nuisance = replace(identity("test", index), skin=skin), Style.draw(rng), Nuisance.draw(rng)
    how = replace(how, look=replace(how.look, hat="none"), setting=replace(how.setting, framing="close-up"))
    scene = compose(who, how, replace(nuisance, turn=turned or nuisance.turn))
    return torch.from_numpy(render(scene, enlarge=6).image.copy()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def sound(detector: FaceDetector, astronaut: Tensor) -> list[tuple[str, Tensor, Face]]:
    """Photos with their one face: a true one, the pack's samples, drawn people from light to dark."""

    def named() -> Iterator[tuple[str, Tensor]]:
        yield "astronaut", astronaut
        yield from ((path.stem, load_photo(path)) for path in SAMPLES)
        yield from ((f"drawn {skin} {index}", drawn(index, skin)) for skin in (0.0, 0.5, 1.0) for index in (0, 1))

    return [(name, image, face) for name, image in named() for face in detector.detect(image)[:1]]


def test_nothing_is_said_of_sound_photos(sound: list[tuple[str, Tensor, Face]]) -> None:
    """Whatever the skin, and also with a fifth less light, saved badly, with grain, or a little soft."""
    assert len(sound) == 15
    generator = torch.Generator().manual_seed(0)
    for name, image, face in sound:
        grain = torch.randn(image.shape, generator=generator) * 0.02
        soft = softened(image, 0.006 * float(face.box[3] - face.box[1]))
        for harmless in (image, image * 0.8, saved(image, 30), (image + grain).clamp(0, 1), soft):
            assert face_warnings(harmless, face) == [], name


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda image, height: softened(image, 0.025 * height), "blurred"),
        (lambda image, height: shaken(image, round(0.1 * height)), "blurred"),
        (lambda image, height: image * 0.3, "dark"),
        (lambda image, height: (image * 2.3).clamp(0, 1), "overexposed"),
    ],
)
def test_spoilt_photos_are_told(
    sound: list[tuple[str, Tensor, Face]], spoil: Callable[[Tensor, float], Tensor], word: str
) -> None:
    for name, image, face in sound:
        if word == "overexposed" and not name.startswith("astronaut") and "0.0" not in name:
            continue  # a dark face in more light is no white one
        told = face_warnings(spoil(image, float(face.box[3] - face.box[1])), face)
        assert word in told, name


def test_blur_is_the_width_of_an_edge() -> None:
    """An edge blurred by a Gaussian of sigma: whatever its height, direction and the picture's size."""
    step = torch.zeros(3, 112, 112)
    step[:, :, 56:] = 1
    for sigma in (2.0, 3.0, 5.0):
        edge = softened(step, sigma)
        assert blur(edge, WHOLE) == pytest.approx(sigma, rel=0.03)
        assert blur(0.2 + edge * 0.1, WHOLE) == pytest.approx(sigma, rel=0.03)
        assert blur(edge.mT, WHOLE) == pytest.approx(sigma, rel=0.03)
    twice = resize(softened(step, 5.0)[None], (224, 224))[0]
    assert blur(twice, WHOLE * 2) == pytest.approx(5, rel=0.03)


def test_a_shaken_camera_blurs_one_direction() -> None:
    """An edge drawn out over 16 pixels has slopes of 1/16 there, and two bends of 1/16: 16 / 2 = 2 sigma^2."""
    rows = torch.arange(112) // 28 % 2
    board = (rows[:, None] ^ rows).float().expand(3, -1, -1)
    assert blur(board, WHOLE) == pytest.approx(0.5, rel=0.03)  # a slope of 1 and two bends of 1
    assert blur(shaken(board, 16), WHOLE) == pytest.approx(2, rel=0.03)
    assert blur(shaken(board, 16).mT, WHOLE) == pytest.approx(2, rel=0.03)


def test_an_enlarged_photo_is_blurred(astronaut: Tensor, detector: FaceDetector) -> None:
    tiny = resize(astronaut[None], (128, 128))
    large = resize(tiny, (1024, 1024))[0]
    (face,) = detector.detect(large)
    assert "blurred" in face_warnings(large, face)


@pytest.mark.parametrize("degrees", [-60, -35, 0, 20, 45])
@pytest.mark.parametrize("roll", [0, 30])
def test_turn_is_that_of_a_head_in_space(degrees: int, roll: int) -> None:
    """Eyes at distance 1, mouth below, a nose 0.62 before their plane, turned, then rolled, seen from the front."""
    points = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0, 0, 0.62], [-0.4, 0.5, 0], [0.4, 0.5, 0]])
    yaw, tilt = math.radians(degrees), math.radians(roll)
    x = points[:, 0] * math.cos(yaw) + points[:, 2] * math.sin(yaw)
    seen = torch.stack([x, points[:, 1]], 1) @ torch.tensor(
        [[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]]
    )
    assert turn(seen * 80 + 200) == pytest.approx(degrees, abs=0.1)
    face = Face(box=torch.tensor([150.0, 150, 250, 250]), landmarks=seen * 80 + 200)
    told = face_warnings(torch.rand(3, 400, 400, generator=torch.Generator().manual_seed(0)), face)
    assert told == ([f"turned away by {abs(degrees)} degrees"] if abs(degrees) > 40 else [])


def test_a_nod_is_no_turn_and_hides_little_of_one() -> None:
    """The middle of eyes and mouth leaves a turn of 45 degrees at 35 at least; that of the eyes, at 18."""
    points = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0, 0, 0.62], [-0.4, 0.5, 0], [0.4, 0.5, 0]])

    def seen(yaw: float, nod: float) -> Tensor:
        yaw, nod = math.radians(yaw), math.radians(nod)
        x = points[:, 0] * math.cos(yaw) + points[:, 2] * math.sin(yaw)
        z = points[:, 2] * math.cos(yaw) - points[:, 0] * math.sin(yaw)
        return torch.stack([x, points[:, 1] * math.cos(nod) + z * math.sin(nod)], 1) * 80 + 200

    for nod in (-25, 25):
        assert turn(seen(0, nod)) == pytest.approx(0, abs=0.1)
        assert 34 < turn(seen(45, nod)) < 45


def test_the_same_picture_is_found_however_it_was_saved(sound: list[tuple[str, Tensor, Face]]) -> None:
    """And no two pictures are taken for one, though four are of one studio and drawn in one pose."""
    known: dict[str, Tensor] = {}
    for name, image, _ in sound:
        assert find_same(known, fingerprint(image)) is None, name
        known[name] = fingerprint(image)
    for name, image, _ in sound:
        half = resize(image[None], (image.shape[1] // 2, image.shape[2] // 2))[0]
        for copy in (image, half, saved(image, 20), image * 0.6, image.flip(2), saved(half.flip(2), 60)):
            assert find_same(known, fingerprint(copy)) == name


def test_pictures_with_nothing_in_them() -> None:
    flat = torch.full((3, 50, 40), 0.5)
    assert find_same({"a": fingerprint(flat)}, fingerprint(flat)) is None
    for box in ([0.0, 0, 40, 50], [-9.0, -9, 3, 3], [38.0, 48, 90, 90], [5.0, 5, 6, 6]):
        assert face_warnings(flat, Face(box=torch.tensor(box))) == []
