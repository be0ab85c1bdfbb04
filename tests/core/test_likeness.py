"""Whose face it is: the same picture, another, none; and which photos an identity loss can use."""

from __future__ import annotations

import pytest
import torch

from magicapture_core.identity import ARCFACE_SIZE, Recogniser, align
from magicapture_core.images import resize
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.likeness import check_targets, embed, find_face, ranked, similarity
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


class Seen(Recogniser):
    """Embeds a face as itself."""

    input_size = ARCFACE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.somewhere = torch.nn.Parameter(torch.zeros(1))

    def forward(self, faces):
        return faces


FACE = torch.tensor([(-0.4, -0.3), (0.4, -0.35), (0.0, 0.1), (-0.3, 0.5), (0.35, 0.5)])  # around its middle


@pytest.mark.parametrize("size", [20, 90, 131, 333])  # enlarged; reduced by less than 2, by 2, by 7 and a little
@pytest.mark.parametrize("angle", [0.0, 40.0, 180.0])
@pytest.mark.parametrize("centre", [(350, 301), (5, 9), (697, 600), (350, -40), (-900, 300), (300, 2000)])
def test_the_window_is_seen_as_in_the_whole_picture(size, angle, centre):
    """In the middle, across every edge, outside of the picture; sizes that no reduction divides."""
    image = torch.rand(3, 603, 701, generator=torch.Generator().manual_seed(0))
    turn = torch.deg2rad(torch.tensor(angle))
    rotation = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    landmarks = FACE @ rotation.T * size + torch.tensor(centre)
    whole = align(image[None] * 2 - 1, landmarks, ARCFACE_SIZE)
    found = embed(Seen(), image, Face(box=torch.zeros(4), landmarks=landmarks))
    torch.testing.assert_close(found, whole, atol=1e-3, rtol=0)  # of noise, whose neighbours differ by up to 2


def test_the_window_is_the_same_person(recogniser, detector, astronaut):
    large = resize(astronaut[None], (1811, 1793))[0]
    for image in (astronaut, large):
        face = find_face(detector, image)
        assert face
        assert face.landmarks is not None
        whole = recogniser(align(image[None] * 2 - 1, face.landmarks, recogniser.input_size))
        torch.testing.assert_close(embed(recogniser, image, face), whole, atol=1e-5, rtol=0)


def test_of_a_large_picture_only_the_window_is_worked_on():
    """Of 50 million pixels, which here are one and the same, a face of 400 x 400 and its margin."""
    image = torch.full((3, 1, 1), 0.5).expand(3, 7000, 7000)
    seen = torch.autograd.profiler.profile(profile_memory=True)
    with seen:
        embed(Seen(), image, Face(box=torch.zeros(4), landmarks=FACE * 150 + 3000))
    assert 0 < max(event.self_cpu_memory_usage for event in seen.key_averages()) < 20e6


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
