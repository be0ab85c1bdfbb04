"""Whose face it is: the same picture, another, none; and which photos an identity loss can use."""

from __future__ import annotations

import pytest
import torch

from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.likeness import check_targets, ranked, similarity
from magicapture_core.types import Face, MagiCaptureError, Portraits


@pytest.fixture(scope="module")
def recogniser() -> IResNet:
    torch.manual_seed(0)
    return IResNet(BLOCKS[18], 8, num_features=16).eval().requires_grad_(False)


def test_a_face_is_most_alike_to_itself_wherever_it_stands(recogniser, detector, astronaut):
    moved = torch.zeros(3, 560, 600)
    moved[:, 40:552, 70:582] = astronaut
    made = [astronaut, moved, astronaut.flip(0), torch.zeros(3, 64, 64)]  # the third in other colours
    *seen, none = similarity(recogniser, detector, made, [astronaut])
    assert none is None
    same, shifted, other = (score or 0.0 for score in seen)
    assert same == pytest.approx(1, abs=1e-5)
    assert shifted == pytest.approx(1, abs=2e-3)
    assert 0 < other < shifted


def test_several_references_count_alike(recogniser, detector, astronaut):
    """The mean of the cosines to each; a reference without a face counts for none."""
    darker = astronaut * 0.4
    single = [similarity(recogniser, detector, [astronaut], [image])[0] or 0.0 for image in (astronaut, darker)]
    [both] = similarity(recogniser, detector, [astronaut], [astronaut, torch.zeros(3, 64, 64), darker])
    assert both == pytest.approx(sum(single) / 2, abs=1e-5)


def test_a_reference_without_a_face_is_refused(recogniser, detector, astronaut):
    with pytest.raises(MagiCaptureError, match="reference: no face"):
        similarity(recogniser, detector, [astronaut], [torch.zeros(3, 64, 64)])


def portraits(*known: bool) -> Portraits:
    faces = [Face(box=torch.zeros(4), landmarks=torch.zeros(5, 2) if has else None) for has in known]
    return Portraits(images=torch.zeros(len(known), 3, 8, 8), masks=torch.ones(len(known), 1, 8, 8), faces=faces)


def test_photos_without_landmarks_are_named():
    assert check_targets({"subject": portraits(True, True), "style": portraits(True)}) == []
    [note] = check_targets({"subject": portraits(True, False, True, False), "style": portraits(True)})
    assert note == "subject: the identity loss leaves out photo 2, 4, whose face was not found"


@pytest.mark.parametrize(("side", "sides"), [("subject", (False, True)), ("style", (True, False))])
def test_a_side_without_any_is_refused(side, sides):
    with pytest.raises(MagiCaptureError, match=f"identity loss: no {side} photo"):
        check_targets({name: portraits(known) for name, known in zip(("subject", "style"), sides, strict=True)})
    masks_alone = Portraits(images=torch.zeros(1, 3, 8, 8), masks=torch.ones(1, 1, 8, 8))
    with pytest.raises(MagiCaptureError, match="identity loss: no subject photo"):
        check_targets({"subject": masks_alone, "style": portraits(True)})


def test_the_best_comes_first_and_no_face_last():
    assert ranked([0.2, None, -0.5, 0.9, None, 0.2]) == [3, 0, 5, 2, 1, 4]
    assert ranked([]) == []
