"""Face parsing: the crop goes to the network and its classes come back to the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from magicapture_core.faces import FaceDetector
from magicapture_core.masks import MaskOptions, prepare_portraits
from magicapture_core.parsing import MEAN, NUM_CLASSES, SIZE, STD, WEIGHTS, FaceParser, load_face_parser
from magicapture_core.types import MagiCaptureError


class BrightIsSkin(nn.Module):
    """Class 1, skin, where the picture is bright; class 17, hair, where it is dark. Outputs as BiSeNet's."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.shape[1:] == (3, SIZE, SIZE)
        logits = torch.zeros(len(images), NUM_CLASSES, SIZE, SIZE)
        logits[:, 1], logits[:, 17] = images.mean(1), -images.mean(1)
        return logits, logits, logits


@pytest.mark.parametrize("size", [(200, 300), (1600, 1500)])  # the crop is enlarged, and reduced
def test_classes_come_back_to_their_pixels(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.zeros(3, height, width)
    image[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    box = torch.tensor([width / 5, height / 5, width / 1.8, height / 1.8])
    mask = FaceParser(BrightIsSkin())(image, box)
    assert mask.shape == (1, height, width)
    assert (mask - image[:1]).abs().mean() < 0.01


def test_what_is_far_from_the_face_is_no_face() -> None:
    mask = FaceParser(BrightIsSkin())(torch.ones(3, 300, 300), torch.tensor([20.0, 20, 80, 80]))
    assert mask[0, 50, 50] == 1
    assert mask[:, 120:].max() == mask[:, :, 120:].max() == 0  # the box enlarged twice ends at 110


def test_the_parser_makes_the_mask_around_the_chosen_face(detector: FaceDetector, astronaut: Tensor) -> None:
    options = MaskOptions(shape="parsed")
    portraits, _ = prepare_portraits([("a", astronaut)], 256, detector, options, parser=FaceParser(BrightIsSkin()))
    assert portraits is not None
    mask, image, (face,) = portraits.masks[0, 0], portraits.images[0], portraits.faces
    assert face.landmarks is not None
    inside = (slice(int(face.box[1]), int(face.box[3])), slice(int(face.box[0]), int(face.box[2])))
    bright = ((image - MEAN[:, None, None]) / STD[:, None, None]).mean(0) > 0
    assert (mask[inside].round() == bright[inside]).float().mean() > 0.95
    assert mask[:20].max() == 0  # bright background, far from the box


def test_facexlib_and_its_weights(tmp_path: Path) -> None:
    bisenet = pytest.importorskip("facexlib.parsing.bisenet", reason="facexlib is not installed")
    torch.save(bisenet.BiSeNet(num_class=NUM_CLASSES).state_dict(), tmp_path / WEIGHTS)
    mask = load_face_parser([tmp_path])(torch.rand(3, 128, 128), torch.tensor([32.0, 32, 96, 96]))
    assert mask.shape == (1, 128, 128)
    (tmp_path / WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(MagiCaptureError, match="does not hold the weights"):
        load_face_parser([tmp_path])
    torch.save({}, tmp_path / WEIGHTS)
    with pytest.raises(MagiCaptureError, match="does not hold the weights"):
        load_face_parser([tmp_path])
