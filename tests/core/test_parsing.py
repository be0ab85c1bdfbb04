"""Face parsing: the crop goes to the network and its classes come back to the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from magicapture_core.faces import FaceDetector
from magicapture_core.masks import MaskOptions, prepare_portraits
from magicapture_core.parsing import CLASSES, MEAN, SIZE, STD, WEIGHTS, FaceParser, class_names, load_face_parser
from magicapture_core.types import MagiCaptureError


class BrightIsSkin(nn.Module):
    """Class 1, skin, where the picture is bright; class 17, hair, where it is dark. Outputs as BiSeNet's."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.shape[1:] == (3, SIZE, SIZE)
        logits = torch.zeros(len(images), len(CLASSES), SIZE, SIZE)
        logits[:, 1], logits[:, 17] = images.mean(1), -images.mean(1)
        return logits, logits, logits


@pytest.mark.parametrize("size", [(200, 300), (1600, 1500)])  # the crop is enlarged, and reduced
def test_classes_come_back_to_their_pixels(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.zeros(3, height, width)
    image[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    box = torch.tensor([width / 5, height / 5, width / 1.8, height / 1.8])
    shares = FaceParser(BrightIsSkin())(image, box)
    assert shares.shape == (len(CLASSES), height, width)
    assert (shares[CLASSES.index("skin")] - image[0]).abs().mean() < 0.01
    others = [place for place, name in enumerate(CLASSES) if name not in ("skin", "hair")]
    assert not shares[others].any()


def test_what_is_far_from_the_face_is_no_face() -> None:
    shares = FaceParser(BrightIsSkin())(torch.ones(3, 300, 300), torch.tensor([20.0, 20, 80, 80]))
    assert shares[1, 50, 50] == 1
    assert shares[:, 120:].max() == shares[:, :, 120:].max() == 0  # the box enlarged twice ends at 110


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


def masks_of(
    options: MaskOptions, parser: FaceParser, photo: Tensor, detector: FaceDetector
) -> tuple[Tensor, Tensor | None]:
    """Mask and parts [128,128] of the one face."""
    portraits, notes = prepare_portraits([("a", photo)], 128, detector, options, parser=parser)
    assert portraits is not None, notes
    return portraits.masks[0, 0], None if portraits.parts is None else portraits.parts[0, 0]


def test_the_hair_switch_adds_hair_to_every_painted_shape(detector: FaceDetector, astronaut: Tensor) -> None:
    """Of a network that knows skin and hair: the oval and the hair around it, skin with hair, hair by its name."""
    parser = FaceParser(BrightIsSkin())
    masks = {
        (shape, hair): masks_of(MaskOptions.model_validate(values), parser, astronaut, detector)
        for shape in ("oval", "parsed", "skin", "custom")
        for hair in (False, True)
        for values in [{"shape": shape, "hair": hair, "classes": "nose, skin"}]
    }
    hair, parts = masks_of(MaskOptions(shape="custom", classes="hair"), parser, astronaut, detector)
    assert parts is not None
    assert set(parts.unique().tolist()) == {0, CLASSES.index("hair")}
    for shape in ("parsed", "skin", "custom"):  # alike here, where skin is all there is of a face
        torch.testing.assert_close(masks[shape, False], masks["parsed", False])
        torch.testing.assert_close(masks[shape, True][0], (masks["parsed", False][0] + hair).clamp(max=1))
    torch.testing.assert_close(masks["oval", True][0], torch.maximum(masks["oval", False][0], hair))
    assert masks["oval", False][1] is None
    oval_parts = masks["oval", True][1]
    assert oval_parts is not None
    assert torch.equal(oval_parts, parts)


def test_every_face_is_parsed_in_its_own_place(detector: FaceDetector, astronaut: Tensor) -> None:
    """Each half of a pair gets what it gets alone; a face outside the square gets no look."""
    half = astronaut[:, 30:270, 140:300]
    pair, looks = torch.cat([half, half.flip(2)], 2), []

    class Counting(FaceParser):
        def __call__(self, image: Tensor, box: Tensor) -> Tensor:
            looks.append(box)
            return super().__call__(image, box)

    parser, parsed = Counting(BrightIsSkin()), MaskOptions(shape="skin", all_faces=True)
    mask, _ = masks_of(parsed, parser, pair, detector)
    assert len(looks) == 2
    assert mask[:, :64].any()
    assert mask[:, 64:].any()
    wide = torch.cat([astronaut, torch.full((3, 512, 700), 0.5), astronaut], 2)
    looks.clear()
    masks_of(parsed, parser, wide, detector)
    assert len(looks) == 1


def test_class_names() -> None:
    """In the order of the published weights, by which facexlib's users have them."""
    assert len(CLASSES) == len(set(CLASSES)) == 19
    places = {"background": 0, "skin": 1, "eye_g": 6, "ear_r": 9, "nose": 10, "mouth": 11, "neck": 14, "hair": 17}
    assert {name: CLASSES.index(name) for name in places} == places
    assert class_names("skin, u_lip,hair,") == ("skin", "u_lip", "hair")
    for text, fault in (("skin, lips", "classes: lips is none; write some of"), (" , ", "classes: no name in it")):
        with pytest.raises(MagiCaptureError, match=fault) as caught:
            class_names(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(MagiCaptureError, match="lips is none"):
        prepare_portraits([("a", torch.zeros(3, 64, 64))], 64, None, MaskOptions(shape="custom", classes="lips"))


@pytest.fixture
def bisenet(tmp_path: Path) -> FaceParser:
    """facexlib's own network on random weights, out of a file as its users have it."""
    module = pytest.importorskip("facexlib.parsing.bisenet", reason="facexlib is not installed")
    torch.manual_seed(0)
    torch.save(module.BiSeNet(num_class=len(CLASSES)).state_dict(), tmp_path / WEIGHTS)
    return load_face_parser([tmp_path])


def test_facexlib_tells_the_nineteen_classes(bisenet: FaceParser, detector: FaceDetector, astronaut: Tensor) -> None:
    """Each pixel of the window has one class; masks by name are sums of the network's own classes."""
    shares = bisenet(torch.rand(3, 128, 128), torch.tensor([32.0, 32, 96, 96]))
    assert shares.shape == (19, 128, 128)
    torch.testing.assert_close(shares.sum(0), torch.ones(128, 128))
    everything, _ = masks_of(MaskOptions(shape="custom", classes=", ".join(CLASSES)), bisenet, astronaut, detector)
    assert everything[20:100, 20:100].min() > 0.999
    common = [CLASSES[number] for number in shares.sum((1, 2)).argsort(descending=True)[:2].tolist()]
    both, _ = masks_of(MaskOptions(shape="custom", classes=", ".join(common)), bisenet, astronaut, detector)
    single = [masks_of(MaskOptions(shape="custom", classes=name), bisenet, astronaut, detector)[0] for name in common]
    torch.testing.assert_close(both, sum(single, torch.zeros(128, 128)).clamp(max=1))


def test_facexlib_and_files_that_are_not_its_weights(bisenet: FaceParser, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(MagiCaptureError, match="does not hold the weights"):
        load_face_parser([tmp_path])
    torch.save({}, tmp_path / WEIGHTS)
    with pytest.raises(MagiCaptureError, match="does not hold the weights"):
        load_face_parser([tmp_path])
