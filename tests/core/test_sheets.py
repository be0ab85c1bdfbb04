"""Contact sheets, and words on pictures."""

from __future__ import annotations

import pytest
import torch

from magicapture_core.sheets import contact_sheet, write_on


def test_contact_sheet_puts_every_image_in_its_cell() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    sheet = contact_sheet([colour[:, None, None].expand(3, 20, 30) for colour in colours], columns=2)
    assert sheet.shape == (3, 2 + 2 * 22, 2 + 2 * 32)
    centres = sheet[:, [12, 12, 34], [17, 49, 17]].T
    torch.testing.assert_close(centres, colours)
    assert sheet[:, 34, 49].tolist() == [1, 1, 1]  # the empty cell
    small = contact_sheet([torch.zeros(3, 20, 30), torch.zeros(3, 4, 4)], columns=2)
    assert (small == 0).all(0).sum() == 20 * 30 + 4 * 4


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_writing_is_legible_on_any_picture_and_stays_in_its_corner(grey: float) -> None:
    """Both white and black are in it, whatever is below; all the rest of the picture is as it was."""
    image = torch.full((3, 200, 300), grey)
    written = write_on(image, "1: seed 7, likeness 0.731")
    changed = (written - image).abs().amax(0) > 0.01
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    assert written.shape == image.shape
    assert 170 < rows.min() < rows.max() < 200
    assert 0 <= columns.min() < columns.max() < 240
    inside = written[:, rows.min() : rows.max(), columns.min() : columns.max()]
    assert (inside > 0.95).all(0).sum() > 100
    assert (inside < 0.05).all(0).sum() > 100
    long = write_on(image, "seed " * 50)
    assert ((long - image).abs().amax(0) > 0.01).any(0).nonzero().max() < 299


def test_labels_stand_below_and_stay_in_their_cell() -> None:
    image = torch.full((3, 40, 60), 0.5)
    plain = contact_sheet([image, image], columns=2)
    labelled = contact_sheet([image, image], columns=2, labels=["a very long file name indeed.jpg", ""])
    assert labelled.shape[1] > plain.shape[1]
    text = (labelled[:, 44:] < 0.5).any(0).any(0).nonzero()
    assert len(text) > 0
    assert text.min() >= 2
    assert text.max() < 2 + 60


def test_a_label_has_lines() -> None:
    image = torch.full((3, 40, 60), 0.5)
    heights = [contact_sheet([image] * 2, 2, labels).shape[1] for labels in (["a", "b"], ["a", "b\nc\nd"])]
    assert heights == [2 + 42 + 15, 2 + 42 + 3 * 15]
    sheet = contact_sheet([image, image], 2, ["a", "b\n\nd"])
    dark = (sheet[:, 44:] < 0.5).any(0)
    assert [bool(dark[line * 15 : line * 15 + 15, 64:].any()) for line in range(3)] == [True, False, True]
    assert not dark[15:, :62].any()
