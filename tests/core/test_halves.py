"""A person and a style in one file of split adapters: exactly a sum, whose parts can be scaled, taken out and mixed."""

from dataclasses import replace

import pytest
import torch

from magicapture_core import artifact as artifacts
from magicapture_core import kohya, lora
from magicapture_core.backbone import tiny
from magicapture_core.halves import extract, mix, scaled
from magicapture_core.sampler import applied
from magicapture_core.types import LoraLayer, MagiCaptureError
from tests.core.test_artifact import make_artifact
from tests.core.test_lora import forward, random_layers


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def split_artifact(unet, name="anna", alpha=12.0, seed=0, ranks=(4, 8)):
    """A LoRA on the cross-attention of the tiny UNet, its words random."""
    torch.manual_seed(seed)
    layers = {
        path: LoraLayer(
            down=torch.randn(sum(ranks), layer.down.shape[1]).half().float(),
            up=(torch.randn(len(layer.up), sum(ranks)) * 0.02).half().float(),
            alpha=alpha,
        )
        for path, layer in random_layers(unet).items()
    }
    made = make_artifact(name=name, seed=seed, architecture="magicapture-tiny")
    tokens = tuple(replace(token, vectors=token.vectors[:, :128].contiguous()) for token in made.tokens)
    return replace(
        made,
        tokens=tokens,
        lora=kohya.to_kohya(kohya.UNET, layers),
        rank_split=dict(zip(("subject", "style"), ranks, strict=True)),
    )


def output(backbone, artifact):
    with applied(backbone, artifact):
        return forward(backbone.unet)


def updates(artifact):
    """Layer -> (alpha / rank) up down."""
    layers = kohya.read_layers(artifact.lora)
    return {key: layer.up @ layer.down * (layer.alpha / len(layer.down)) for key, layer in layers.items()}


def test_the_whole_is_the_sum_of_its_halves(backbone):
    whole = split_artifact(backbone.unet)
    subject, style = (updates(extract(whole, side, "part")) for side in ("subject", "style"))
    for key, update in updates(whole).items():
        torch.testing.assert_close(subject[key] + style[key], update)


def test_taking_both_out_and_mixing_them_again_changes_no_bit(backbone):
    whole = split_artifact(backbone.unet)
    again = mix(whole, whole, "anna")
    assert again.rank_split == whole.rank_split
    assert again.lora.keys() == whole.lora.keys()
    assert all(torch.equal(again.lora[key], value) for key, value in whole.lora.items())
    assert [token.name for token in again.tokens] == ["subject", "style"]


def test_a_strength_of_zero_is_the_other_half_alone(backbone):
    whole = split_artifact(backbone.unet)
    without = output(backbone, scaled(whole, {"subject": 0.0, "style": 1.0}))
    torch.testing.assert_close(without, output(backbone, extract(whole, "style", "ink")), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(without, output(backbone, whole), atol=1e-2)
    assert scaled(whole, {"subject": 1.0, "style": 1.0}) is whole


def test_a_mix_holds_the_person_of_one_and_the_style_of_the_other(backbone):
    """Of other scales, 12 / 12 and 24 / 12, and of other ranks."""
    anna, bea = split_artifact(backbone.unet), split_artifact(backbone.unet, "bea", alpha=24.0, seed=1, ranks=(8, 4))
    mixed = mix(anna, bea, "anna_in_bea")
    assert mixed.rank_split == {"subject": 4, "style": 4}
    person, style = updates(extract(anna, "subject", "x")), updates(extract(bea, "style", "y"))
    for key, update in updates(mixed).items():
        torch.testing.assert_close(update, person[key] + style[key])
    assert torch.equal(mixed.tokens[0].vectors, anna.tokens[0].vectors)
    assert torch.equal(mixed.tokens[1].vectors, bea.tokens[1].vectors)


def test_layers_that_one_of_the_two_lacks_are_kept(backbone):
    anna, bea = split_artifact(backbone.unet), split_artifact(backbone.unet, "bea", seed=1)
    key = next(iter(kohya.read_layers(bea.lora)))
    less = replace(bea, lora={name: value for name, value in bea.lora.items() if not name.startswith(key + ".")})
    update = updates(mix(anna, less, "x"))[key]
    torch.testing.assert_close(update, updates(extract(anna, "subject", "x"))[key])
    torch.testing.assert_close(updates(mix(less, anna, "x"))[key], updates(extract(anna, "style", "x"))[key])


def test_an_extracted_style_is_a_file_like_any_other(backbone, tmp_path):
    style = extract(split_artifact(backbone.unet), "style", "ink")
    path, embedding = artifacts.save(style, tmp_path)
    loaded = artifacts.load(path)
    assert embedding.name == "ink_style.safetensors"
    assert [token.name for token in loaded.tokens] == ["style"]
    assert loaded.rank_split == {"style": 8}
    torch.testing.assert_close(output(backbone, loaded), output(backbone, style))


def test_faults_are_named(backbone):
    whole = split_artifact(backbone.unet)
    style = extract(whole, "style", "ink")
    alike = replace(whole.tokens[1], placeholder="<subject>")
    for act, words in (
        (lambda: extract(make_artifact(), "style", "x"), "joint adapters"),
        (lambda: scaled(make_artifact(), {"subject": 0.5, "style": 1.0}), "joint adapters"),
        (lambda: mix(whole, replace(whole, tokens=(whole.tokens[0], alike)), "x"), "same placeholder"),
        (lambda: extract(style, "subject", "x"), "ink holds no subject, only the style"),
        (lambda: mix(whole, replace(style, architecture="stable-diffusion-v1"), "x"), "kind of model"),
        (lambda: extract(replace(whole, rank_split={"subject": 4, "style": 4}), "style", "x"), "has rank 12"),
    ):
        with pytest.raises(MagiCaptureError, match=words):
            act()


def test_gates_let_each_item_through_its_own_part(backbone):
    """Two items, a gate each: the first acts as the first half alone, the second as the second."""
    whole = split_artifact(backbone.unet)
    halves = [output(backbone, extract(whole, side, "x")) for side in ("subject", "style")]
    gates = torch.tensor([[1.0] * 4 + [0.0] * 8, [0.0] * 4 + [1.0] * 8])
    with applied(backbone, whole), lora.gated(backbone.unet, gates):
        gated = forward(backbone.unet)
    for index, half in enumerate(halves):
        torch.testing.assert_close(gated[index], half[index], atol=1e-4, rtol=1e-3)
