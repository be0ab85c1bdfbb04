"""From photos to portraits: masks where the face is, one index for everything, a note on every photo."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from magicapture_core.faces import FaceDetector, load_face_detector
from magicapture_core.images import resize, to_pil
from magicapture_core.masks import MaskOptions, grow_mask, overlay, prepare_portraits, require_portraits, soften
from magicapture_core.types import Face, MagiCaptureError, Portraits

PLAIN = MaskOptions()


def disk(height: int, width: int, x: float, y: float, radius: float) -> Tensor:
    """[1,H,W]"""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).float()[None]


def centre(mask: Tensor) -> Tensor:
    """[1,H,W] -> [2], x y"""
    size = torch.arange(mask.shape[-1]) + 0.5
    return torch.stack([(mask[0].sum(0) * size).sum(), (mask[0].sum(1) * size).sum()]) / mask.sum()


def twins(astronaut: Tensor) -> Tensor:
    """[3,512,900]: a smaller face at about (110, 190) and the full one at (613, 125)."""
    picture = torch.full((3, 512, 900), 0.5)
    picture[:, :, 388:] = astronaut
    picture[:, 100:260, 30:190] = resize(astronaut[None, :, 20:220, 120:320], (160, 160))[0]
    return picture


def test_shape_own_takes_the_mask_alone(detector: FaceDetector, astronaut: Tensor) -> None:
    """A person in front of the pet: her face is not taken for it. And a mask that fills the photo needs no padding."""
    mask = torch.zeros(1, 512, 512)
    mask[:, :, 50:450] = 1
    own = MaskOptions(shape="own")
    photos = [("pet.jpg", astronaut), ("none.jpg", astronaut)]
    portraits, notes = prepare_portraits(photos, 64, detector, own, [mask, None])
    assert portraits is not None
    assert [face.file_name for face in portraits.faces] == ["pet.jpg"]
    assert portraits.faces[0].box.tolist() == [6.25, 0, 56.25, 64]
    assert "its edge" not in notes[0].text
    assert notes[1].text.startswith("no mask for it")
    faces, _ = prepare_portraits(photos[:1], 64, detector, PLAIN, [mask])
    assert faces is not None
    assert faces.faces[0].landmarks is not None


# --- with the networks -----------------------------------------------------------------------------------------------


def test_the_oval_covers_the_face_and_nothing_else(detector: FaceDetector, astronaut: Tensor) -> None:
    portraits, notes = prepare_portraits([("a.jpg", astronaut)], 256, detector, PLAIN)
    assert portraits is not None
    mask, (face,) = portraits.masks[0, 0], portraits.faces
    assert portraits.images.shape == (1, 3, 256, 256)
    assert portraits.masks.shape == (1, 1, 256, 256)
    assert face.landmarks is not None
    for x, y in face.landmarks.round().int().tolist():
        assert mask[y, x] == 1
    left, top, right, bottom = face.box.tolist()
    assert 0.25 * 256 < bottom - top < 0.6 * 256
    assert 0.6 < mask.sum() / ((right - left) * (bottom - top)) < 1.1
    assert mask[:, : int(left) - 10].max() == mask[int(bottom) + 15 :].max() == 0
    assert 0 < ((mask > 0) & (mask < 1)).sum() < 0.1 * mask.sum()  # smooth edges, no more
    assert (face.file_name, face.source_index) == ("a.jpg", 0)
    assert str(notes[0]).startswith("+ a.jpg: one face, cut out around the face")
    assert "face 40% of the height" in notes[0].text


def test_every_photo_gets_a_note_and_bad_ones_do_not_stop_the_others(detector: FaceDetector, astronaut: Tensor) -> None:
    empty = torch.full((3, 200, 200), 0.3)
    small = resize(astronaut[None], (200, 200))[0]  # its face has 37 pixels
    photos = [("empty.jpg", empty), ("small.jpg", small), ("twins.jpg", twins(astronaut)), ("good.jpg", astronaut)]
    portraits, notes = prepare_portraits(photos, 512, detector, PLAIN)
    assert portraits is not None
    assert [(note.file_name, note.used) for note in notes] == [
        ("empty.jpg", False),
        ("small.jpg", False),
        ("twins.jpg", True),
        ("good.jpg", True),
    ]
    assert notes[0].text == "no face found"
    assert "too small, 3" in notes[1].text
    assert "min_face_size" in notes[1].text
    assert "2 faces, took number 1 from the left" in notes[2].text
    assert "enlarged 2.0 times" in notes[3].text
    assert [(face.source_index, face.file_name) for face in portraits.faces] == [(2, "twins.jpg"), (3, "good.jpg")]


def test_one_index_serves_box_landmarks_mask_and_picture(detector: FaceDetector, astronaut: Tensor) -> None:
    photos = [("twins.jpg", twins(astronaut))]
    chosen = {}
    for index in (-1, 0, 1):
        portraits, notes = prepare_portraits(photos, 128, detector, MaskOptions(face_index=index))
        assert portraits is not None, notes
        chosen[index] = portraits
        (face,) = portraits.faces
        assert face.landmarks is not None
        box_centre = (face.box[:2] + face.box[2:]) / 2
        for place in (face.landmarks.mean(0), centre(portraits.masks[0])):
            assert (place - box_centre).norm() < 12
    torch.testing.assert_close(chosen[-1].images, chosen[1].images)
    assert (chosen[0].images - chosen[1].images).abs().mean() > 0.01
    portraits, notes = prepare_portraits(photos, 128, detector, MaskOptions(face_index=2))
    assert portraits is None
    assert "no face 2: found 2" in notes[0].text


def test_a_given_mask_chooses_the_face_and_travels_with_the_crop(detector: FaceDetector, astronaut: Tensor) -> None:
    """A disk of 20 pixels on the nose of the smaller face; the painted oval would be larger."""
    photo, mask = twins(astronaut), disk(512, 900, 114, 188, 20)
    portraits, notes = prepare_portraits([("twins.jpg", photo)], 128, detector, PLAIN, [mask])
    assert portraits is not None
    (face,) = portraits.faces
    assert face.landmarks is not None
    scale = float((face.box[3] - face.box[1]) / 82)  # that face has 82 pixels in the photo
    assert portraits.masks.sum() == pytest.approx(torch.pi * (20 * scale) ** 2, rel=0.15)
    assert (centre(portraits.masks[0]) - face.landmarks[2]).norm() < 10
    assert "took number 0" in notes[0].text
    assert "with your mask" in notes[0].text


def test_a_black_mask_counts_as_none(detector: FaceDetector, astronaut: Tensor) -> None:
    masked, _ = prepare_portraits([("a", astronaut)], 128, detector, PLAIN, [torch.zeros(1, 64, 64)])
    plain, _ = prepare_portraits([("a", astronaut)], 128, detector, PLAIN)
    assert masked is not None
    assert plain is not None
    torch.testing.assert_close(masked.masks, plain.masks)


def test_grow_shrinks_and_may_leave_nothing(detector: FaceDetector, astronaut: Tensor) -> None:
    areas = []
    for grow in (-10, 0, 10):
        portraits, _ = prepare_portraits([("a", astronaut)], 128, detector, MaskOptions(grow=grow))
        assert portraits is not None
        areas.append(float(portraits.masks.sum()))
    assert areas[0] < 0.7 * areas[1] < 0.7 * areas[2] * 0.8
    portraits, notes = prepare_portraits([("a", astronaut)], 128, detector, MaskOptions(grow=-60))
    assert portraits is None
    assert "grow is -60" in notes[0].text


# --- without them ----------------------------------------------------------------------------------------------------


def test_with_masks_no_network_is_needed() -> None:
    photo = torch.rand(3, 300, 400, generator=torch.Generator().manual_seed(0))
    mask = disk(300, 400, 250, 120, 60)
    photos = [("a.jpg", photo), ("b.jpg", photo)]
    portraits, notes = prepare_portraits(photos, 150, None, PLAIN, [mask, None])
    assert portraits is not None
    assert len(portraits) == 1
    (face,) = portraits.faces
    # 120 of 300 pixels are in range: the photo keeps its height; columns 50 to 350 would be its middle, 300 pixels
    torch.testing.assert_close(face.box, (torch.tensor([190.0, 60, 310, 180]) - torch.tensor([50.0, 0, 50, 0])) / 2)
    assert face.landmarks is None
    torch.testing.assert_close(portraits.images[0], resize(photo[None, :, :, 50:350], (150, 150))[0])
    torch.testing.assert_close(portraits.masks[0], resize(mask[None, :, :, 50:350], (150, 150))[0])
    assert notes[0].text.startswith("your mask, which also says where the face is, kept the photo's middle, 300 pixels")
    assert notes[1].text == "no mask for it, and no face networks to find its face"


def test_a_mask_of_another_size_is_fitted_and_of_another_shape_refused() -> None:
    photo = torch.rand(3, 300, 400)
    half = disk(150, 200, 125, 60, 30)
    whole, _ = prepare_portraits([("a", photo)], 150, None, PLAIN, [disk(300, 400, 250, 120, 60)])
    fitted, _ = prepare_portraits([("a", photo)], 150, None, PLAIN, [half])
    assert whole is not None
    assert fitted is not None
    assert (whole.masks - fitted.masks).abs().mean() < 0.01
    portraits, notes = prepare_portraits([("a", photo)], 150, None, PLAIN, [disk(200, 200, 100, 100, 30)])
    assert portraits is None
    assert notes[0].text == "its mask has 200 x 200 pixels, the photo 400 x 300"


def test_a_small_photo_is_used_where_nothing_is_enlarged() -> None:
    photo, mask = torch.rand(3, 64, 64), disk(64, 64, 32, 32, 13)
    small, _ = prepare_portraits([("a", photo)], 64, None, PLAIN, [mask])
    assert small is not None
    large, notes = prepare_portraits([("a", photo)], 128, None, PLAIN, [mask])
    assert large is None
    assert "too small, 26 pixels" in notes[0].text


def test_a_photo_of_16_pixels_is_refused_whatever_is_known_of_it() -> None:
    thumbnail, mask = torch.rand(3, 16, 16), disk(16, 16, 8, 8, 6)
    portraits, notes = prepare_portraits([("a", thumbnail)], 512, None, PLAIN, [mask])
    assert (portraits, notes[0].text) == (None, "its face is too small, 12 pixels; the least is min_face_size, 64")
    portraits, notes = prepare_portraits([("a", thumbnail)], 512, load_face_detector(), PLAIN)
    assert (portraits, notes[0].text) == (None, "no face found")


def test_require_portraits_names_every_photo_in_one_line() -> None:
    photos = [("a.jpg", torch.zeros(3, 64, 64)), ("b.jpg", torch.zeros(3, 64, 64))]
    portraits, notes = prepare_portraits(photos, 64, None, PLAIN)
    with pytest.raises(MagiCaptureError, match=r"^style: no photo can be used \(a\.jpg: .*; b\.jpg: ") as caught:
        require_portraits(portraits, notes, "style")
    assert "\n" not in str(caught.value)
    with pytest.raises(MagiCaptureError, match="none given"):
        require_portraits(*prepare_portraits([], 64, None, PLAIN), "style")


def test_parsed_masks_ask_for_what_they_need(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path / "magicapture"))
    with pytest.raises(
        MagiCaptureError, match=r"parsing_bisenet\.pth is missing; put it into .*facedetection"
    ) as caught:
        prepare_portraits([("a", torch.zeros(3, 64, 64))], 64, None, MaskOptions(shape="parsed"))
    assert "\n" not in str(caught.value)


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


def test_overlay_shows_mask_box_landmarks_and_share() -> None:
    mask = disk(128, 128, 64, 64, 40)[None]
    face = Face(box=torch.tensor([30.0, 30, 98, 98]), landmarks=torch.tensor([[64.0, 64.0]] * 5))
    images = torch.full((1, 3, 128, 128), 0.5)
    drawn = overlay(Portraits(images=images, masks=mask, faces=[face]))
    assert drawn.shape == images.shape
    red, _, blue = drawn[0]
    assert red[44, 64] > 0.7 > 0.4 > blue[44, 64]  # tinted inside
    assert red[120, 120] == blue[120, 120] == pytest.approx(0.5, abs=0.01)  # untouched outside
    assert drawn[0, 1, 30, 64] > 0.8  # the box
    assert drawn[0, 0, 64, 64] > 0.9 > 0.1 > drawn[0, 2, 64, 64]  # a landmark
    assert (drawn[0, :, :24, :48] > 0.95).all(0).any()  # white digits
    bare = overlay(Portraits(images=images, masks=mask))
    assert (bare[0] != drawn[0]).any(0)[25:105, 25:105].any()
    assert isinstance(to_pil(drawn[0]), Image.Image)


def test_options_refuse_what_cannot_be() -> None:
    for wrong in ({"face_share": 0.9}, {"face_index": -2}, {"shape": "square"}, {"grown": 3}, {"feather": -1}):
        with pytest.raises(ValidationError):
            MaskOptions.model_validate(wrong)
