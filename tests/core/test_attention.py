import pytest
import torch

from magicapture_core import lora
from magicapture_core.attention import capture, split_contexts, token_probs
from magicapture_core.backbone import tiny
from magicapture_core.config import LoraConfig
from magicapture_core.losses import attention_refocusing


@pytest.fixture
def unet():
    return tiny().unet


@pytest.fixture
def inputs(unet):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, unet.config.in_channels, 16, 16, generator=generator)
    prompt_embeds = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    return latents, torch.tensor([10, 900]), prompt_embeds


def one_hot(batch, *positions):
    columns = torch.zeros(batch, len(positions), 77)
    for index, position in enumerate(positions):
        columns[:, index, position] = 1
    return columns


def test_token_probs_are_columns_of_the_whole_softmax():
    query, key = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0)), torch.randn(2, 3, 77, 8)
    whole = (query @ key.mT / 8**0.5).softmax(-1)
    columns = one_hot(2, 5, 9)
    columns[:, 1, 9:11] = 0.5
    probs = token_probs(query, key, columns)
    torch.testing.assert_close(probs[:, 0], whole[..., 5])
    torch.testing.assert_close(probs[:, 1], whole[..., 9:11].mean(-1))


def test_capturing_does_not_change_the_output_and_leaves_the_processors(unet, inputs):
    processors = list(unet.attn_processors.values())
    output = unet(*inputs).sample
    with capture(unet, one_hot(2, 1)) as maps:
        assert torch.equal(unet(*inputs).sample, output)
    assert all(old is new for old, new in zip(processors, unet.attn_processors.values(), strict=True))
    assert set(maps) == {name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name}


def test_maps_of_all_tokens_sum_to_one_everywhere(unet, inputs):
    with capture(unet, torch.eye(77).expand(2, -1, -1)) as maps:
        unet(*inputs)
    for layer in maps.values():
        torch.testing.assert_close(layer.sum(1), torch.ones_like(layer[:, 0]))


def test_maps_have_the_grid_of_their_layer_also_when_it_is_not_square(unet, inputs):
    _, timesteps, prompt_embeds = inputs
    latents = torch.randn(2, unet.config.in_channels, 8, 16)
    with capture(unet, one_hot(2, 1)) as maps:
        unet(latents, timesteps, prompt_embeds)
    assert {layer.shape[-2:] for layer in maps.values()} <= {(8, 16), (4, 8), (2, 4)}
    with capture(unet, one_hot(2, 1), {(4, 8)}) as maps:
        unet(latents, timesteps, prompt_embeds)
    assert maps
    assert {layer.shape[-2:] for layer in maps.values()} == {(4, 8)}


def attention_gradient(unet, inputs, checkpointing):
    """Gradient of the attention loss alone, by module path."""
    if checkpointing:
        unet.enable_gradient_checkpointing()
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., :4] = 1
    with lora.injected(unet, LoraConfig(), "cross-attention", torch.Generator().manual_seed(0)) as parameters:
        for parameter in parameters:
            parameter.data += 0.01  # up = 0 would stop the gradient of down
        with capture(unet, one_hot(2, 1), {(8, 8)}) as maps:
            unet(*inputs)
            attention_refocusing(torch.stack(list(maps.values()), 2)[:, 0], masks).sum().backward()
        return {
            f"{name}.{part}": getattr(layer, part)["default"].weight.grad
            for name, layer in lora.lora_modules(unet).items()
            for part in ("lora_A", "lora_B")
        }


def test_the_attention_loss_alone_reaches_to_q_and_to_k_with_checkpointing_on(unet, inputs):
    """Reentrant checkpointing would give no gradient at all, without a word."""
    with_checkpointing = attention_gradient(unet, inputs, checkpointing=True)
    read = {name: grad for name, grad in with_checkpointing.items() if grad is not None and grad.abs().sum() > 0}
    assert any(".to_q." in name for name in read)
    assert any(".to_k." in name for name in read)
    without = attention_gradient(tiny().unet, inputs, checkpointing=False)
    for name, grad in without.items():
        if grad is None:
            assert with_checkpointing[name] is None
        else:
            torch.testing.assert_close(with_checkpointing[name], grad)


def test_keys_and_values_of_one_prompt_are_ordinary_attention_to_the_bit(unet, inputs):
    latents, timesteps, prompt_embeds = inputs
    plain = unet(*inputs).sample
    with split_contexts(unet):
        assert torch.equal(unet(*inputs).sample, plain)
        assert torch.equal(unet(latents, timesteps, torch.stack([prompt_embeds, prompt_embeds], 1)).sample, plain)


def test_each_side_of_a_split_context_goes_its_own_way(unet, inputs):
    """With queries and keys of one prompt and values of another: what the layers compute by hand."""
    latents, timesteps, of_keys = inputs
    of_values = of_keys.flip(0)
    seen = []

    def check(attn, args, kwargs, output):
        query, key, value = (
            layer.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q(args[0]), attn.to_k(of_keys), attn.to_v(of_values))
        )
        mixed = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value
        torch.testing.assert_close(attn.to_out[0](mixed.transpose(1, 2).flatten(2)), output, atol=1e-5, rtol=1e-4)
        seen.append(attn)

    hooks = [
        module.register_forward_hook(check, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]
    with torch.no_grad(), split_contexts(unet):
        unet(latents, timesteps, torch.stack([of_keys, of_values], 1))
    assert len(seen) == len(hooks)
