"""CLIP out of folders and files against transformers' own, and the aesthetic predictor by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionModelWithProjection

from magicapture_core.backbone import TINY_FOLDER, load_tokenizer
from magicapture_core.evaluate.aesthetic import AestheticPredictor, load_aesthetic
from magicapture_core.evaluate.clip import MEAN, STD, load_clip, prepare
from magicapture_core.images import from_pil, resize, to_pil
from magicapture_core.types import MagiCaptureError

SIZE, WIDTH = 32, 24
TOKENIZER = TINY_FOLDER / "tokenizer"
IDS: dict[str, Any] = {"vocab_size": 1161, "bos_token_id": 1159, "eos_token_id": 1160, "pad_token_id": 1160}
MANY: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def make_clip(vision: dict[str, Any], text: dict[str, Any] | None = None, act: str = "quick_gelu") -> Any:
    """Random weights, large enough that every layer shows."""
    torch.manual_seed(0)
    shared = {"projection_dim": WIDTH, "hidden_act": act}
    halves: dict[str, Any] = {
        "vision_config": MANY | {"image_size": SIZE, "patch_size": 8} | shared | vision,
        "text_config": MANY | IDS | {"hidden_size": 32} | shared | (text or {}),
    }
    model: Any = CLIPModel(CLIPConfig(**halves, projection_dim=WIDTH)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return make_clip({"hidden_size": 40})


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers saves it, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder)
    return folder


def image(*size: int) -> Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(1))


def unit(found: Any) -> Tensor:
    """What transformers calls features: a tensor, since version 5 in an object."""
    return F.normalize(getattr(found, "pooler_output", found), dim=1)[0]


def seen_by(model: Any, picture: Tensor) -> Tensor:
    """A picture [3,SIZE,SIZE] -> [D] of unit length, by transformers."""
    pixels = (picture - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return unit(model.get_image_features(pixel_values=pixels[None]))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_pictures_and_texts_are_those_of_transformers(model, folder):
    clip, text = load_clip(folder), "a photo of a person"
    close(clip.embed_image(image(SIZE, SIZE)), seen_by(model, image(SIZE, SIZE)))
    ids = torch.tensor([load_tokenizer(TOKENIZER)(text).input_ids])
    close(clip.embed_text(text), unit(model.get_text_features(input_ids=ids)))
    assert (clip.width, clip.has_text, clip.model.training) == (WIDTH, True, False)
    assert abs(float(clip.embed_text("a drawing") @ clip.embed_text(text))) < 0.99


@pytest.mark.parametrize("size", [(100, 100), (90, 151), (151, 90), (20, 33), (SIZE, SIZE)], ids=str)
def test_a_picture_is_seen_as_openai_does(size):
    """Pillow's bicubic, the shorter side first, then the middle; Pillow rounds between its two passes."""
    picture = from_pil(to_pil(resize(image(12, 12)[None], size)[0]))
    height, width = (SIZE * side // min(size) for side in size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    small = to_pil(picture).resize((width, height), Image.Resampling.BICUBIC)
    expected = from_pil(small.crop((left, top, left + SIZE, top + SIZE)))
    found = prepare(picture, SIZE) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(found, expected, atol=2.5 / 255, rtol=0)


def test_nothing_is_seen_that_no_picture_can_show():
    """Next to a hard edge bicubic overshoots, beyond black and white."""
    found = prepare((image(6, 40) > 0.5).float(), SIZE)
    colours = found * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(torch.stack(colours.aminmax()), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_a_folder_of_the_vision_half_is_the_same_without_words(model, tmp_path):
    half = CLIPVisionModelWithProjection(model.config.vision_config)
    half.load_state_dict({name: value for name, value in model.state_dict().items() if name in half.state_dict()})
    half.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    close(clip.embed_image(image(SIZE, SIZE)), seen_by(model, image(SIZE, SIZE)))
    assert not clip.has_text


@pytest.mark.parametrize(("width", "heads", "act"), [(768, 12, "quick_gelu"), (1280, 16, "gelu")])
def test_a_single_file_tells_its_shape(tmp_path, width, heads, act):
    """One of OpenAI's, one of OpenCLIP's; halved, and with the position numbers that older files hold."""
    vision = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 1}
    model = make_clip(vision, {"hidden_size": 128}, act)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, tmp_path / "clip.safetensors")
    clip = load_clip(tmp_path / "clip.safetensors")
    close(clip.embed_image(image(SIZE, SIZE)), seen_by(model, image(SIZE, SIZE)))
    ids = torch.tensor([[1159, 320, 972, 1160]])
    close(unit(clip.model.get_text_features(ids)), unit(model.get_text_features(ids)))
    vision_half = {name: value for name, value in weights.items() if name.startswith(("vision", "visual"))}
    save_file(vision_half, tmp_path / "half.safetensors")
    half = load_clip(tmp_path / "half.safetensors")
    close(half.embed_image(image(SIZE, SIZE)), seen_by(model, image(SIZE, SIZE)))
    assert not half.has_text


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(path: Path, reason: str) -> None:
    with pytest.raises(MagiCaptureError, match=reason) as caught:
        load_clip(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_other_kinds_of_file_are_refused(tmp_path):
    refused(tmp_path, r"model\.safetensors: there is no such file; take openai/clip-vit-large-patch14")
    (tmp_path / "clip.pt").write_bytes(b"")
    refused(tmp_path / "clip.pt", r"clip\.pt: of CLIP only \.safetensors is read")
    (tmp_path / "clip.safetensors").write_bytes(b"damaged")
    refused(tmp_path / "clip.safetensors", r"clip\.safetensors: cannot be read")


def test_other_networks_are_refused(folder, tmp_path):
    text = CLIPTextModel(CLIPTextConfig(**MANY, **IDS, hidden_size=32))
    text.save_pretrained(tmp_path)
    refused(tmp_path, "no CLIP under transformers' names")
    refused(folder / "model.safetensors", "its shapes are of no CLIP that is known here")  # of width 40


def test_a_folder_whose_parts_do_not_fit_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "clip")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": "siglip"}))
    refused(copy, "is of siglip, not of CLIP")
    (copy / "config.json").unlink()
    refused(copy, r"config\.json: missing")
    shutil.copy(folder / "config.json", copy)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors")
    refused(copy, r"clip: visual_projection\.weight should be \(24, 40\) and is nothing")


def test_a_long_text_and_anothers_tokenizer_are_refused(folder, tmp_path):
    with pytest.raises(MagiCaptureError, match="CLIP reads 77 tokens and this has 102, 'a a a"):
        load_clip(folder).embed_text("a " * 100)
    make_clip({"hidden_size": 40}, {"vocab_size": 2000}).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, tmp_path)
    with pytest.raises(MagiCaptureError, match="knows 2000 tokens, not those of"):
        load_clip(tmp_path).embed_text("a photo")


# -- the aesthetic predictor -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Random weights under the names and with the shapes of the published file, but for a narrower CLIP."""
    draw = torch.Generator().manual_seed(0)
    shapes = {0: (1024, WIDTH), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    weights = {f"layers.{place}.weight": torch.randn(shape, generator=draw) for place, shape in shapes.items()}
    return weights | {f"layers.{place}.bias": torch.randn(shape[0], generator=draw) for place, shape in shapes.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_predictor_is_five_linear_maps(tmp_path, published, suffix):
    path = tmp_path / f"aesthetic{suffix}"
    torch.save(published, path) if suffix == ".pth" else save_file(published, path)
    embeds = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2))
    expected = embeds
    for place in (0, 2, 4, 6, 7):
        expected = expected @ published[f"layers.{place}.weight"].T + published[f"layers.{place}.bias"]
    torch.testing.assert_close(load_aesthetic(path, WIDTH)(embeds), expected[:, 0])


def test_what_is_no_predictor_is_refused(tmp_path, published):
    def refused(weights: Any, reason: str) -> None:
        torch.save(weights, tmp_path / "net.pth")
        with pytest.raises(MagiCaptureError, match=reason) as caught:
            load_aesthetic(tmp_path / "net.pth", WIDTH)
        assert "\n" not in str(caught.value)

    with pytest.raises(MagiCaptureError, match="there is no such file"):
        load_aesthetic(tmp_path / "missing.pth", WIDTH)
    refused(AestheticPredictor(768).state_dict(), r"net\.pth: judges CLIP embeddings of 768 numbers, .* have 24")
    refused({"weight": torch.zeros(2)}, r"net\.pth: no aesthetic predictor; take sac\+logos")
    refused({name: value for name, value in published.items() if "7" not in name}, r"layers\.7\.weight should be")
    refused({"a": [1]}, "no plain state dict")
