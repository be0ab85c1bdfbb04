import pytest
import torch

from magicapture_core import lora
from magicapture_core.backbone import tiny
from magicapture_core.config import LoraConfig
from magicapture_core.types import LoraLayer, MagiCaptureError
from tests.small import same, weights


@pytest.fixture(scope="module")
def unet():
    return tiny().unet


def forward(unet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, unet.config.in_channels, 16, 16, generator=generator)
    prompt_embeds = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 900]), prompt_embeds).sample


def random_layers(unet, rank=4, alpha=8.0, target="cross-attention"):
    with lora.injected(unet, LoraConfig(lora_rank=rank), target, torch.Generator().manual_seed(1)):
        fresh = lora.state(unet)
    generator = torch.Generator().manual_seed(2)
    return {
        name: LoraLayer(down=layer.down, up=torch.randn(layer.up.shape, generator=generator) * 0.1, alpha=alpha)
        for name, layer in fresh.items()
    }


@pytest.mark.parametrize("target", ["cross-attention", "attention", "attention+ff"])
def test_a_fresh_lora_changes_nothing_and_leaves_nothing_behind(unet, target):
    before, output, modules = weights(unet), forward(unet), list(unet.modules())
    with lora.injected(unet, LoraConfig(), target, torch.Generator().manual_seed(0)) as parameters:
        assert torch.equal(forward(unet), output)
        assert len(parameters) == 2 * len(lora.lora_modules(unet))
    assert same(weights(unet), before)
    assert all(old is new for old, new in zip(modules, unet.modules(), strict=True))
    assert not hasattr(unet, "peft_config")


def test_the_targets_are_the_layers_they_name(unet):
    def modules(target):
        with lora.injected(unet, LoraConfig(), target, torch.Generator()):
            return set(lora.lora_modules(unet))

    cross = modules("cross-attention")
    assert cross
    assert all(".attn2." in name for name in cross)
    assert {name.replace("attn2", "attn1") for name in cross} | cross == modules("attention")
    assert all(".ff.net." in name for name in modules("attention+ff") - modules("attention"))


def test_a_target_that_matches_nothing_is_an_error():
    with (
        pytest.raises(MagiCaptureError, match="matches no layer"),
        lora.injected(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig(), "attention", torch.Generator()),
    ):
        pass


def test_applying_is_adding_scaled_up_times_down_to_the_weights(unet):
    """alpha / rank = 2, strength .5: W' = W + up down."""
    layers, before = random_layers(unet), weights(unet)
    with lora.applied(unet, layers, strength=0.5):
        applied = forward(unet)
    with torch.no_grad():
        for name, layer in layers.items():
            unet.get_submodule(name).weight += layer.up @ layer.down
    merged = forward(unet)
    unet.load_state_dict({name.removeprefix("0."): value for name, value in before.items()})
    torch.testing.assert_close(applied, merged, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(merged, forward(unet))


def test_strength_zero_is_the_untouched_model(unet):
    output = forward(unet)
    with lora.applied(unet, random_layers(unet), strength=0.0):
        assert torch.equal(forward(unet), output)


def test_a_lora_of_another_model_is_refused(unet):
    with (
        pytest.raises(MagiCaptureError, match="nowhere"),
        lora.applied(unet, {"nowhere": LoraLayer(down=torch.zeros(4, 8), up=torch.zeros(8, 4), alpha=4)}),
    ):
        pass
    assert not lora.lora_modules(unet)


def test_layers_of_unequal_rank_keep_their_own(unet):
    layers = random_layers(unet, rank=4) | dict(list(random_layers(unet, rank=8).items())[:1])
    with lora.applied(unet, layers):
        state = lora.state(unet)
    assert {name: (layer.down.shape, layer.alpha) for name, layer in state.items()} == {
        name: (layer.down.shape, layer.alpha) for name, layer in layers.items()
    }
