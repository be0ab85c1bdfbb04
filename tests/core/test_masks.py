"""From photos to portraits: masks where the face is, one index for everything, a note on every photo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from magicapture_core.faces import FaceDetector, load_face_detector
from magicapture_core.images import resize
from magicapture_core.masks import MaskOptions, prepare_portraits, require_portraits
from magicapture_core.painting import grow_mask, soften
from magicapture_core.types import MagiCaptureError, PhotoNote, Portraits

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


@pytest.mark.parametrize("options", [MaskOptions(shape="parsed"), MaskOptions(hair=True)])
def test_parsed_masks_ask_for_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: MaskOptions
) -> None:
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path / "magicapture"))
    with pytest.raises(
        MagiCaptureError, match=r"parsing_bisenet\.pth is missing; put it into .*facedetection.*pip install facexlib"
    ) as caught:
        prepare_portraits([("a", torch.zeros(3, 64, 64))], 64, None, options)
    assert "\n" not in str(caught.value)


def test_all_faces_are_masked_and_one_is_framed(detector: FaceDetector, astronaut: Tensor) -> None:
    """Two people beside each other, both in the square; the square and FACES are those of the chosen one."""
    pair = torch.cat([astronaut[:, 30:270, 140:300], astronaut[:, 30:270, 140:300].flip(2)], 2)
    one, _ = prepare_portraits([("pair", pair)], 128, detector, PLAIN)
    both, notes = prepare_portraits([("pair", pair)], 128, detector, MaskOptions(all_faces=True))
    assert one is not None
    assert both is not None
    torch.testing.assert_close(one.images, both.images)
    torch.testing.assert_close(one.faces[0].box, both.faces[0].box)
    assert (both.masks >= one.masks).all()
    assert "2 faces" in notes[0].text
    assert notes[0].text.count("all masked") == 1
    other = both.masks[0, 0] - one.masks[0, 0]
    side = slice(64, 128) if one.masks[0, 0, :, :64].sum() > one.masks[0, 0, :, 64:].sum() else slice(0, 64)
    assert other[:, side].sum() > 0.9 * other.sum() > 0.3 * one.masks.sum()


def test_a_given_mask_is_added_or_taken_away(detector: FaceDetector, astronaut: Tensor) -> None:
    """A disk on the nose, then one beside the face: neither moves the square, which follows the face."""
    plain, _ = prepare_portraits([("a", astronaut)], 128, detector, PLAIN)
    assert plain is not None
    nose, beside = disk(512, 512, 224, 140, 20), disk(512, 512, 150, 60, 12)
    made = {}
    for combine in ("replace", "add", "subtract"):
        options = MaskOptions.model_validate({"combine": combine})
        for name, mask in (("nose", nose), ("beside", beside), ("black", torch.zeros(1, 512, 512))):
            if (combine, name) == ("replace", "beside"):
                continue  # then the mask alone would say where the face is
            portraits, notes = prepare_portraits([("a", astronaut)], 128, detector, options, [mask])
            assert portraits is not None, notes
            made[combine, name] = portraits
            if name == "black":
                torch.testing.assert_close(portraits.masks, plain.masks)
            elif combine != "replace":
                torch.testing.assert_close(portraits.images, plain.images)
                assert {"add": "your mask added", "subtract": "your mask taken away"}[combine] in notes[0].text
    given = made["replace", "nose"].masks
    torch.testing.assert_close(made["add", "nose"].masks, torch.maximum(plain.masks, given))
    torch.testing.assert_close(made["subtract", "nose"].masks, plain.masks * (1 - given))
    torch.testing.assert_close(made["subtract", "beside"].masks, plain.masks, atol=0.01, rtol=0)
    assert (made["add", "beside"].masks - plain.masks).sum() == pytest.approx(torch.pi * (12 * 128 / 256) ** 2, rel=0.2)
    whole, notes = prepare_portraits(
        [("a", astronaut)], 128, detector, MaskOptions(combine="subtract"), [torch.ones(1, 512, 512)]
    )
    assert whole is None
    assert "combine is subtract" in notes[0].text


def test_what_is_taken_away_stays_away_and_what_is_added_grows(detector: FaceDetector, astronaut: Tensor) -> None:
    """The painted mask grows, not into the hole; grow and feather make the edge of face and addition together."""
    nose = disk(512, 512, 224, 140, 20)

    def masks(given: Tensor | None = None, /, **options: object) -> Tensor:
        chosen = MaskOptions.model_validate(options)
        portraits, notes = prepare_portraits([("a", astronaut)], 128, detector, chosen, [given])
        assert portraits is not None, notes
        return portraits.masks

    given, edge = masks(nose), {"grow": 8, "feather": 6}
    assert torch.equal(masks(nose, combine="subtract", **edge), masks(**edge) * (1 - given))
    beside = disk(512, 512, 150, 60, 12)
    plain, added = masks(), masks(beside, combine="add")
    grown = soften(grow_mask(added[0], 8), 6)
    assert torch.equal(masks(beside, combine="add", **edge)[0], grown)
    assert (grown > 0.5).sum() > ((masks(**edge) > 0.5) | (added > plain)).sum()


@pytest.mark.parametrize("combine", ["add", "subtract"])
def test_the_face_that_was_painted_on_is_the_one(detector: FaceDetector, astronaut: Tensor, combine: str) -> None:
    """A hand before the smaller face, which is not the one in the middle; paint beside both faces chooses none."""
    photo, hand, far = twins(astronaut), disk(512, 900, 114, 188, 20), disk(512, 900, 60, 450, 20)

    def prepare(given: Tensor | None, /, **options: object) -> tuple[Portraits, PhotoNote]:
        chosen = MaskOptions.model_validate({"combine": combine} | options)
        portraits, notes = prepare_portraits([("twins", photo)], 128, detector, chosen, [given])
        assert portraits is not None, notes
        return portraits, notes[0]

    (small, _), (large, _) = prepare(None, face_index=0), prepare(None, face_index=1)
    on, note = prepare(hand)
    assert torch.equal(on.images, small.images)
    assert not torch.equal(on.masks, small.masks) or combine == "add"
    assert "took number 0 from the left (counted from 0), under your mask, your mask" in note.text
    assert note.warnings == prepare(None, face_index=0)[1].warnings
    for given, options in ((far, {}), (hand, {"face_index": 1})):
        off, note = prepare(given, **options)
        assert torch.equal(off.images, large.images)
        assert torch.equal(off.masks, large.masks)
        assert "took number 1" in note.text
        assert note.warnings[0] == "your mask lies outside the square"


def test_what_is_wrong_with_a_photo_is_told_and_it_is_used_all_the_same(
    detector: FaceDetector, astronaut: Tensor
) -> None:
    large = resize(resize(astronaut[None, :, :300, 70:370], (110, 110)), (900, 900))[0]
    photos = [("good.jpg", astronaut), ("dark.jpg", astronaut * 0.3), ("large.jpg", large)]
    portraits, notes = prepare_portraits(photos, 128, detector, PLAIN)
    assert portraits is not None
    assert len(portraits) == 3
    assert [note.verdict for note in notes] == [
        "good",
        "usable: dark, the same picture as good.jpg",
        "usable: blurred",
    ]
    assert str(notes[1]).endswith("; usable: dark, the same picture as good.jpg")
    assert "usable" not in str(notes[0])
    _, notes = prepare_portraits(photos[:1], 512, detector, PLAIN)
    assert notes[0].warnings == ("small",)
    own = MaskOptions(shape="own")
    given = [disk(image.shape[1], image.shape[2], 224, 140, 60) for _, image in photos]
    _, notes = prepare_portraits(photos, 128, None, own, given)
    assert [note.warnings for note in notes] == [(), ("the same picture as good.jpg",), ()]  # no face to be dark


def test_photos_of_odd_and_different_sizes(detector: FaceDetector, astronaut: Tensor) -> None:
    """513 x 771, a photo turned on its side in which no face is found, 16 pixels; none stops the others."""
    photos = [
        ("tall.png", resize(astronaut[None], (771, 513))[0]),
        ("narrow.png", astronaut[:, :301, 151:298]),
        ("noise.png", torch.rand(3, 61, 1023, generator=torch.Generator().manual_seed(0))),
        ("dot.png", torch.rand(3, 16, 16)),
        ("line.png", torch.rand(3, 1, 300)),
    ]
    for options in (PLAIN, MaskOptions(all_faces=True)):
        portraits, notes = prepare_portraits(photos, 96, detector, options)
        assert portraits is not None
        assert portraits.images.shape == (2, 3, 96, 96)
        assert [note.used for note in notes] == [True, True, False, False, False]


def test_a_mask_that_is_white_all_over_frames_the_whole_photo(detector: FaceDetector, astronaut: Tensor) -> None:
    portraits, notes = prepare_portraits([("a", astronaut)], 64, detector, PLAIN, [torch.ones(1, 64, 64)])
    assert portraits is not None
    assert portraits.masks.min() > 0.99
    assert "mask 100% of the square" in notes[0].text


def test_the_options_of_yesterday_mean_what_they_meant() -> None:
    """Classes 1 to 13 for `parsed`, as in the paper; no parser for oval and own."""
    assert MaskOptions(shape="parsed").parts == tuple(range(1, 14))
    assert MaskOptions(shape="oval").parts == MaskOptions(shape="own", hair=True).parts == ()
    assert MaskOptions(shape="custom").parts == MaskOptions(shape="parsed").parts  # what stands in classes at first
    assert MaskOptions(shape="skin").parts == (1, 2, 3, 4, 5, 6, 10, 11, 12, 13)
    assert MaskOptions(shape="skin", hair=True).parts == (1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 17)
    assert MaskOptions(hair=True).parts == (17,)
    assert MaskOptions(shape="custom", classes="hat, hair ,neck", hair=True).parts == (14, 17, 18)
    assert MaskOptions(classes="nobody asks").parts == ()


def test_options_refuse_what_cannot_be() -> None:
    for wrong in ({"face_share": 0.9}, {"face_index": -2}, {"shape": "square"}, {"grown": 3}, {"feather": -1}):
        with pytest.raises(ValidationError):
            MaskOptions.model_validate(wrong)
