"""The overlay and the contact sheet say in colours and numbers what the masks and notes hold."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from magicapture_core.images import to_pil
from magicapture_core.parsing import CLASSES
from magicapture_core.proofs import CELL, GOOD, NOT_USED, PARTS, USABLE, overlay, photo_sheet
from magicapture_core.types import Face, PhotoNote, Portraits


def block(value: float = 1.0) -> Tensor:
    """[1,1,128,128], `value` in the middle"""
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = value
    return mask


def near(image: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """[3,H,W] -> [H,W], which pixels have it"""
    return (image - torch.tensor(colour)[:, None, None] / 255).abs().amax(0) < 0.02


def test_overlay_shows_mask_box_landmarks_and_numbers() -> None:
    face = Face(box=torch.tensor([30.0, 30, 98, 98]), landmarks=torch.tensor([[64.0, 64.0]] * 5))
    images = torch.full((1, 3, 128, 128), 0.5)
    drawn = overlay(Portraits(images=images, masks=block(), faces=[face]))
    assert drawn.shape == images.shape
    red, _, blue = drawn[0]
    assert red[44, 64] > 0.7 > 0.4 > blue[44, 64]  # tinted inside
    assert red[120, 120] == blue[120, 120] == pytest.approx(0.5, abs=0.01)  # untouched outside
    assert drawn[0, 1, 30, 70] > 0.8  # the box
    assert drawn[0, 0, 64, 64] > 0.9 > 0.1 > drawn[0, 2, 64, 64]  # a landmark
    assert (drawn[0, :, :40, :48] > 0.95).all(0).any()  # white digits
    bare = overlay(Portraits(images=images, masks=block()))
    assert (bare[0] != drawn[0]).any(0)[45:105, 25:105].any()
    assert isinstance(to_pil(drawn[0]), Image.Image)


def test_the_number_is_that_of_the_photo_not_of_the_square() -> None:
    images = torch.zeros(1, 3, 256, 256)

    def top_line(source_index: int) -> Tensor:
        face = Face(box=torch.tensor([100.0, 100, 150, 150]), source_index=source_index)
        return overlay(Portraits(images=images, masks=torch.zeros(1, 1, 256, 256), faces=[face]))[0, :, :14]

    assert (top_line(0) != top_line(6)).any()
    torch.testing.assert_close(top_line(0), overlay(Portraits(images=images, masks=images[:, :1]))[0, :, :14])


def test_parts_have_their_colours_and_a_legend() -> None:
    """Skin above, hair below, and both words; without parts neither."""
    images, parts = torch.zeros(1, 3, 128, 128), block().byte()
    parts[..., 64:96, 32:96] = CLASSES.index("hair")
    drawn = overlay(Portraits(images=images, masks=block(), parts=parts))[0]
    skin, hair = (torch.tensor(PARTS[word][1]) / 255 for word in ("skin", "hair"))
    torch.testing.assert_close(drawn[:, 50, 80], 0.45 * skin, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn[:, 80, 80], 0.45 * hair, atol=0.01, rtol=0)
    for word in PARTS:
        assert near(drawn, PARTS[word][1])[96:, :60].any() == (word in ("skin", "hair")), word
    plain = overlay(Portraits(images=images, masks=block()))[0]
    assert not plain[:, 100:].any()


def test_every_class_has_one_colour() -> None:
    named = [name for names, _ in PARTS.values() for name in names]
    assert sorted(named) == sorted(CLASSES[1:])
    assert len({colour for _, colour in PARTS.values()}) == len(PARTS)


def test_the_sheet_shows_every_photo_and_its_verdict() -> None:
    """Used, used with a warning, not used: framed in their colours, whatever their sizes; seven in two rows."""
    sizes = [(300, 200), (16, 16), (513, 771), (40, 3000), (64, 64), (64, 64), (1, 1)]
    photos = [torch.full((3, *size), 0.5) for size in sizes]
    notes = [
        PhotoNote(file_name="a.jpg", used=True, text="one face"),
        PhotoNote(file_name="b.jpg", used=True, text="one face", warnings=("blurred", "dark")),
        PhotoNote(file_name="c.jpg", used=False, text="its face is too small " * 20),
        *[PhotoNote(file_name="d.jpg", used=False, text="no face found")] * 4,
    ]
    sheet = photo_sheet(photos, notes)
    assert sheet.shape[2] == 5 * (CELL + 4) + 4
    line = sheet[:, 4 + CELL // 2]  # through the middle of the upper row's photos
    colours = [GOOD, USABLE, NOT_USED, NOT_USED, NOT_USED]
    for place, colour in enumerate(colours):
        cell = line[:, 4 + place * (CELL + 4) : 4 + place * (CELL + 4) + CELL]
        found = [near(cell[:, None], other)[0].any().item() for other in (GOOD, USABLE, NOT_USED)]
        assert found == [other == colour for other in (GOOD, USABLE, NOT_USED)]
    assert photo_sheet(photos[:1], notes[:1]).shape[2] == CELL + 8


def test_verdicts() -> None:
    note = PhotoNote(file_name="a", used=True, text="one face")
    assert (note.verdict, str(note)) == ("good", "+ a: one face")
    note = PhotoNote(file_name="a", used=True, text="one face", warnings=("blurred", "dark"))
    assert (note.verdict, str(note)) == ("usable: blurred, dark", "+ a: one face; usable: blurred, dark")
    note = PhotoNote(file_name="a", used=False, text="no face", warnings=("dark",))
    assert (note.verdict, str(note)) == ("not used: no face", "- a: no face")
