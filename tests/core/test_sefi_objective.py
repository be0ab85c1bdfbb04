from contextlib import contextmanager

import pytest
import torch

from magicapture_core import tokens
from magicapture_core.backbone import tiny
from magicapture_core.dataset import ItemKey
from magicapture_core.objective import Terms
from magicapture_core.sefi.config import parse_sefi_config
from magicapture_core.sefi.objective import Batch, EncodedPhotos, SefiObjective, plain_word, token_of
from magicapture_core.sefi.stages import stage_words
from magicapture_core.types import MagiCaptureError
from tests.small import same, weights

BOTH = Terms(1.0, 0.003, 0.0, 0.0)
RECONSTRUCTION = Terms(1.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@contextmanager
def opened(backbone, moved=0.0, **changes):
    """The objective, the module behind its words, moved away from the plain word by noise, and all it may train."""
    config = parse_sefi_config({"resolution": 64, "attention_downscale": 1, "parts": "vectors", **changes})
    generator = torch.Generator().manual_seed(1)
    words = stage_words(config, plain_word(backbone, config), generator)
    with torch.no_grad():
        for parameter in words.parameters():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    with tokens.extended(backbone.text_encoder, words):
        yield SefiObjective(backbone, config, words), words


def batch(*timesteps):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, len(timesteps), 4, 16, 16, generator=generator)
    return Batch(latents=latents, noise=noise, timesteps=torch.tensor(timesteps))


def terms(objective, given, weights=BOTH):
    with objective.terms(given, weights) as found:
        return Terms(*(term.detach() for term in found))


def gradient_of(vectors):
    """[2S,C]."""
    (parameter,) = vectors.parameters()
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("parts", ["vectors", "block"])
def test_the_attention_loss_of_the_plain_word_is_zero_and_training_starts_there(backbone, parts):
    with opened(backbone, parts=parts) as (objective, _):
        assert terms(objective, batch(10, 500)).attention.tolist() == [0, 0]
    with opened(backbone, moved=0.1) as (objective, _):
        assert (terms(objective, batch(10, 500)).attention > 0).all()


@contextmanager
def attention_by_hand(unet, largest, hold_reference=True):
    """The terms of a forward pass's layers, each from softmaxes of its own: an oracle, with its gradient."""
    found = []

    def compare(attn, args, kwargs, _output):
        states, contexts = args[0], kwargs["encoder_hidden_states"]
        if states.shape[1] <= largest:
            query, target, reference = (
                layer.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for layer in (attn.to_q(states), attn.to_k(contexts[:, 0]), attn.to_k(contexts[:, 2]))
            )
            probs = [(query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) for key in (target, reference)]
            held = probs[1].detach() if hold_reference else probs[1]
            found.append((probs[0] - held).square().sum((2, 3)).mean())

    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_hook(compare, with_kwargs=True) for layer in layers]
    yield found
    for hook in hooks:
        hook.remove()
    assert found


def test_the_attention_loss_is_that_of_two_passes_by_hand(backbone):
    """Reference keys against the queries of the same pass, on the grids of the limit and below."""
    for downscale, largest in ((1, 16 * 16), (2, 8 * 8)):
        with opened(backbone, moved=0.05, attention_downscale=downscale) as (objective, _):
            with attention_by_hand(backbone.unet, largest) as expected:
                found = terms(objective, batch(700)).attention
            torch.testing.assert_close(found[0], torch.stack(expected).mean())


def test_both_terms_come_from_one_pass(backbone):
    calls = []
    with opened(backbone, moved=0.1) as (objective, _):
        with backbone.unet.register_forward_hook(lambda *_: calls.append(1)):
            both = terms(objective, batch(10, 500))
        assert calls == [1]
        alone = terms(objective, batch(10, 500), RECONSTRUCTION)
    torch.testing.assert_close(both.reconstruction, alone.reconstruction)
    assert alone.attention.tolist() == [0, 0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_only_the_identity_and_only_the_stage_of_the_timestep(backbone, checkpointing):
    modules = (backbone.unet, backbone.text_encoder, backbone.vae)
    before = weights(*modules)
    if checkpointing:
        backbone.unet.enable_gradient_checkpointing()
    with opened(backbone, moved=0.1) as (objective, words):
        with objective.terms(batch(600, 799), BOTH) as found:  # both of stage 3 of 0..4
            found.weighed(BOTH).sum().backward()
        gradient = gradient_of(words)
        assert gradient.abs().sum(1).ne(0).nonzero().flatten().tolist() == [6, 7]
        others = [p for module in modules for name, p in module.named_parameters() if ".learned." not in name]
        assert all(parameter.grad is None for parameter in others)
    backbone.unet.disable_gradient_checkpointing()
    assert same(weights(*modules), before)


def test_checkpointing_changes_no_gradient(backbone):
    def gradient():
        with opened(backbone, moved=0.1) as (objective, words), objective.terms(batch(100), BOTH) as found:
            found.weighed(BOTH).sum().backward()
            return gradient_of(words)

    plain = gradient()
    backbone.unet.enable_gradient_checkpointing()
    again = gradient()
    backbone.unet.disable_gradient_checkpointing()
    torch.testing.assert_close(again, plain)


def test_the_attention_term_pulls_at_the_learned_maps_and_holds_the_reference(backbone):
    """Deep queries depend on the words too, and so does the reference's map: through that no gradient goes."""
    attention, gradients = Terms(0.0, 1.0, 0.0, 0.0), {}
    with opened(backbone, moved=0.1) as (objective, words):
        for held in (True, False):
            with attention_by_hand(backbone.unet, 16 * 16, held) as layers, objective.terms(batch(0), attention):
                torch.stack(layers).mean().backward()
            gradients[held] = gradient_of(words)
            words.zero_grad()
        with objective.terms(batch(0), attention) as found:
            found.attention.sum().backward()
        torch.testing.assert_close(gradient_of(words), gradients[True], rtol=1e-3, atol=1e-6)
        assert not torch.allclose(gradients[False], gradients[True], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("parts", ["vectors", "block"])
def test_keys_and_values_have_words_of_their_own_only_when_split(backbone, parts, split):
    with opened(backbone, moved=0.01, parts=parts, key_value_split=split, num_stages=3) as (objective, words):
        keys, values = token_of(objective.config, words).vectors.view(3, 2, -1).unbind(1)
        assert torch.equal(keys, values) != split
        assert len(keys.unique(dim=0)) == 3


def test_one_stage_without_split_is_textual_inversion(backbone):
    """The plain UNet with the word as an ordinary learned one gives the same loss."""
    changes = {"num_stages": 1, "key_value_split": False}
    with opened(backbone, moved=0.1, **changes) as (objective, _):
        given = batch(3, 995)
        found = terms(objective, given, RECONSTRUCTION).reconstruction
        ids = tokens.Vocabulary(backbone.tokenizer, {"<person>": (-1,)}).encode(["a photo of the face of <person>"])
        embeds = backbone.text_encoder(ids.expand(2, -1)).last_hidden_state
        abar = backbone.noise_scheduler.alphas_cumprod[given.timesteps][:, None, None, None]
        noisy = abar.sqrt() * given.latents + (1 - abar).sqrt() * given.noise
        with torch.no_grad():
            expected = (backbone.unet(noisy, given.timesteps, embeds).sample - given.noise).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


def test_an_item_depends_on_its_own_address_alone():
    generator = torch.Generator().manual_seed(0)
    photos = EncodedPhotos(
        mean=torch.randn(2, 3, 4, 8, 8, generator=generator), std=torch.ones(2, 3, 4, 8, 8), scaling_factor=0.5
    )
    config = parse_sefi_config({"flip": True})
    items = [ItemKey(phase="identity", step=step, group=0, task="source") for step in range(4)]
    together, alone = photos.draw(config, items), photos.draw(config, items[2:3])
    for name in ("latents", "noise", "timesteps"):
        assert torch.equal(getattr(together, name)[2:3], getattr(alone, name))
    assert len(together.timesteps.unique()) == 4


def test_a_plain_word_of_several_tokens_is_named(backbone):
    with (
        pytest.raises(MagiCaptureError, match="'qwertz' is 6 tokens to this model"),
        opened(backbone, initializer_token="qwertz"),
    ):
        pass


@pytest.mark.parametrize(
    "template",
    [
        "the {person}s face",  # "persons" is one word
        "<person> beside {person}",  # the learned word in the reference too
    ],
)
def test_the_template_has_the_plain_word_where_it_has_the_learned_one(backbone, template):
    with pytest.raises(MagiCaptureError, match=r"^template: "), opened(backbone, template=template):
        pass
    too_long = "a photo " * 60 + "of {person}"
    with pytest.raises(MagiCaptureError, match="122 tokens"), opened(backbone, template=too_long):
        pass
    with opened(backbone, template="{person}'s face") as (objective, _):
        assert terms(objective, batch(10)).attention.tolist() == [0]


def test_an_attention_loss_that_no_layer_has_is_named(backbone):
    """The tiny model's smallest maps have half the latent's side."""
    with opened(backbone, moved=0.1, attention_downscale=8) as (objective, _):
        assert (terms(objective, batch(10), RECONSTRUCTION).reconstruction > 0).all()
        with pytest.raises(MagiCaptureError, match="lower attention_downscale"):
            terms(objective, batch(10))
