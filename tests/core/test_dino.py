"""DINO out of files of both kinds, against transformers' ViTModel with the same random weights."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTModel

from magicapture_core.dino import Dino, load_dino
from magicapture_core.object_losses import object_loss
from magicapture_core.types import MagiCaptureError

CONFIG = ViTConfig(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=512,
    image_size=32,
    patch_size=8,
    layer_norm_eps=1e-6,
)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def model() -> ViTModel:
    """Every weight is drawn, so that none can be left out or taken for another."""
    torch.manual_seed(0)
    model = ViTModel(CONFIG).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model


@pytest.fixture(scope="module")
def path(model: ViTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers itself writes it: under the names of its files, with a pooler."""
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def dino(path: Path) -> Dino:
    return load_dino(path)


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def expected(model: ViTModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and CLS token. Where the keys are made has another name in each version of transformers."""
    *_, layer = (module for name, module in model.named_modules() if name.endswith(("k_proj", "attention.key")))
    kept = []
    with layer.register_forward_hook(lambda module, inputs, output: kept.append(output)):
        pixels = (images - MEAN[:, None, None]) / STD[:, None, None]
        output = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    return kept[0][:, 1:], output[:, 0]


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (16, 64)], ids=str)
def test_keys_and_cls_are_those_of_transformers(dino: Dino, model: ViTModel, size: tuple[int, int]) -> None:
    """At the size of the training and with interpolated positions; 16 x 64 has as many patches as the training had."""
    images = pictures(*size)
    found, (keys, cls) = dino(images), expected(model, images)
    assert found.keys.shape == (2, size[0] * size[1] // 64, 128)
    torch.testing.assert_close(found.keys, keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cls, cls, atol=1e-5, rtol=0)


def test_the_gradient_reaches_the_images_and_no_weight(dino: Dino, model: ViTModel) -> None:
    images = pictures(32, 32).requires_grad_()
    found = dino(images)
    [ours], [theirs] = (
        torch.autograd.grad(keys.square().sum() + cls.sin().sum(), images)
        for keys, cls in ((found.keys, found.cls), expected(model, images))
    )
    assert (ours != 0).float().mean() > 0.99
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not dino.training
    assert not any(parameter.requires_grad for parameter in dino.parameters())


def test_the_object_loss_has_the_gradient_of_finite_differences(dino: Dino) -> None:
    """From the loss through the network to the images, along one direction, in float64."""
    images, net = pictures(16, 16).double(), deepcopy(dino).double()
    target = net(images.flip(-1))

    def loss(images: Tensor) -> Tensor:
        found = net(images)
        return object_loss(found.keys, found.cls, target.keys, target.cls)

    assert torch.autograd.gradcheck(loss, images.requires_grad_(), fast_mode=True)


# -- files -------------------------------------------------------------------------------------------------------------


def saved(folder: Path, content: Any, name: str = "dino.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(left: Dino, right: Dino) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_released_form_is_the_same_network(dino: Dino, tmp_path: Path) -> None:
    found = load_dino(saved(tmp_path, dino.state_dict()))
    assert same(found, dino)
    assert (found.patch_size, found.grid_size, found.input_size) == (8, 4, 32)


def test_the_names_are_those_of_the_release() -> None:
    """dino_deitsmall16_pretrain.pth: 12 blocks of 12 tensors, and 6 around them."""
    with torch.device("meta"):
        net = Dino(384, 12, 16, 14)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert net.input_size == 224
    assert len(shapes) == 12 * 12 + 6
    assert {name: shape for name, shape in shapes.items() if not name.startswith("blocks.")} == {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 197, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    assert {name: shape for name, shape in shapes.items() if name.startswith("blocks.11.")} == {
        "blocks.11.norm1.weight": (384,),
        "blocks.11.norm1.bias": (384,),
        "blocks.11.attn.qkv.weight": (1152, 384),
        "blocks.11.attn.qkv.bias": (1152,),
        "blocks.11.attn.proj.weight": (384, 384),
        "blocks.11.attn.proj.bias": (384,),
        "blocks.11.norm2.weight": (384,),
        "blocks.11.norm2.bias": (384,),
        "blocks.11.mlp.fc1.weight": (1536, 384),
        "blocks.11.mlp.fc1.bias": (1536,),
        "blocks.11.mlp.fc2.weight": (384, 1536),
        "blocks.11.mlp.fc2.bias": (384,),
    }


def test_other_forms_of_transformers_are_the_same_network(dino: Dino, path: Path, tmp_path: Path) -> None:
    """Pickled, without a pooler, and with the prefix of a larger model."""
    weights = load_file(path)
    assert "encoder.layer.0.attention.attention.query.weight" in weights
    assert same(load_dino(saved(tmp_path, weights, "pytorch_model.bin")), dino)
    bare = {key: value for key, value in weights.items() if not key.startswith("pooler.")}
    assert len(bare) == len(weights) - 2
    assert same(load_dino(saved(tmp_path, bare)), dino)
    assert same(load_dino(saved(tmp_path, {f"vit.{key}": value for key, value in bare.items()})), dino)


def test_halved_weights_become_whole(dino: Dino, tmp_path: Path) -> None:
    halved = {key: value.half() for key, value in dino.state_dict().items()}
    save_file(halved, tmp_path / "half.safetensors")
    found = load_dino(tmp_path / "half.safetensors").state_dict()
    assert all(torch.equal(found[key], value.float()) for key, value in halved.items())


# -- files and pictures that are refused -------------------------------------------------------------------------------


def refused(path: Path, reason: str) -> None:
    with pytest.raises(MagiCaptureError, match=reason) as caught:
        load_dino(path)
    assert str(caught.value).startswith(path.name)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # the remedy


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("norm.bias", None, r"norm\.bias should be \(128,\) and is nothing \(1 such\)"),
        ("blocks.1.attn.proj.weight", torch.zeros(128, 64), r"should be \(128, 128\) and is \(128, 64\)"),
        ("blocks.0.mlp.fc1.weight", torch.zeros(512, 128, dtype=torch.int8), "is nothing .*quantised"),
        ("blocks.3.norm1.weight", torch.zeros(128), r"blocks\.2\.norm1\.weight should be \(128,\) and is nothing"),
        ("pos_embed", torch.zeros(1, 18, 128), r"pos_embed should be \(1, 17, 128\) and is \(1, 18, 128\)"),
        ("head.weight", torch.zeros(10, 128), r"head\.weight should be nothing and is \(10, 128\)"),
        ("patch_embed.proj.weight", torch.zeros(128, 1, 8, 8), r"should be \(128, 3, 8, 8\)"),
        ("patch_embed.proj.weight", torch.zeros(100, 3, 8, 8), "no vision transformer with heads of 64"),
        ("patch_embed.proj.weight", torch.zeros(128, 192), "no vision transformer"),
        ("patch_embed.proj.weight", None, "no vision transformer"),
        ("pos_embed", torch.zeros(()), "no vision transformer"),
        ("pos_embed", torch.zeros(1, 0, 128), "holds less"),
        ("pos_embed", None, "no vision transformer"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(
    dino: Dino, tmp_path: Path, key: str, value: Tensor | None, reason: str
) -> None:
    weights = {name: held for name, held in dino.state_dict().items() if name != key}
    refused(saved(tmp_path, weights if value is None else weights | {key: value}), reason)


@pytest.mark.parametrize(
    ("part", "value"), [("key.weight", None), ("value.bias", torch.zeros(())), ("key.weight", torch.zeros(128, 64))]
)
def test_query_key_and_value_belong_together(path: Path, tmp_path: Path, part: str, value: Tensor | None) -> None:
    weights = load_file(path)
    place = f"encoder.layer.1.attention.attention.{part}"
    del weights[place]
    reason = r"blocks\.1\.attn\.query, key and value\.(weight|bias) do not fit together"
    refused(saved(tmp_path, weights if value is None else weights | {place: value}), reason)


def test_a_missing_query_is_seen(path: Path, tmp_path: Path) -> None:
    weights = load_file(path)
    del weights["encoder.layer.0.attention.attention.query.bias"]
    refused(saved(tmp_path, weights), r"blocks\.0\.attn\.qkv\.bias should be \(384,\) and is nothing")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "no vision transformer"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "no vision transformer"),
        ({"student": {}, "teacher": {}, "epoch": 100}, "no plain state dict"),
        (torch.zeros(3), "no plain state dict"),
        (torch.nn.Linear(2, 2), "more than tensors"),
    ],
    ids=["nothing", "ResNet", "full checkpoint", "tensor", "module"],
)
def test_what_is_no_dino_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    refused(saved(tmp_path, content), reason)


def test_a_file_cut_off_anywhere_is_refused(dino: Dino, path: Path, tmp_path: Path) -> None:
    places = random.Random(0)
    for whole in (saved(tmp_path, dino.state_dict()), path):
        data, cut = whole.read_bytes(), tmp_path / f"cut{whole.suffix}"
        for size in (0, 1, 100, len(data) - 1, *(places.randrange(len(data)) for _ in range(5))):
            cut.write_bytes(data[:size])
            refused(cut, "damaged, cut off")


def test_the_file_must_be_there_and_of_a_known_kind(tmp_path: Path) -> None:
    with pytest.raises(MagiCaptureError, match="there is no such file"):
        load_dino(tmp_path / "missing.pth")
    refused(tmp_path / "dino.onnx", r"end in \.pth, \.pt, \.bin or \.safetensors")


def test_a_picture_divides_into_patches(dino: Dino) -> None:
    with pytest.raises(MagiCaptureError, match=r"36 x 32 does not divide into patches of 8; resize it to 32 x 32"):
        dino(pictures(32, 36))
