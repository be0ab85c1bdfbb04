"""One UNet pass per item; each term where it belongs."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from magicapture_core import losses
from magicapture_core.attention import capture
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode, step_items
from magicapture_core.diffusion import add_noise
from magicapture_core.objective import Terms
from magicapture_core.trainer import open_run
from tests.small import portraits, small_config

PLAIN, REFOCUSED, WITH_PRIOR = Terms(1, 0, 0, 0), Terms(1, 1, 0, 0), Terms(1, 0, 0, 1)


@pytest.fixture
def parts():
    backbone, config = tiny(), small_config()
    dataset = encode(backbone, {"subject": portraits(3), "style": portraits(4, seed=1)}, config)
    with open_run(backbone, dataset, config) as run:
        yield run.objective, dataset, config


def test_one_unet_pass_however_many_terms(parts):
    objective, dataset, config = parts
    calls = []
    handle = objective.backbone.unet.register_forward_hook(lambda *_: calls.append(1))
    with handle, objective.terms(dataset.draw(config, step_items(config, "tuning", 0)), REFOCUSED):
        pass
    assert len(calls) == 1


def test_a_batch_is_the_mean_of_its_items(parts):
    objective, dataset, config = parts
    items = step_items(config, "tuning", 0)
    with torch.no_grad(), objective.terms(dataset.draw(config, items), REFOCUSED) as (together, attention, *_):
        pass
    for index, item in enumerate(items):
        with torch.no_grad(), objective.terms(dataset.draw(config, [item]), REFOCUSED) as alone:
            torch.testing.assert_close(alone[0][0], together[index])
            torch.testing.assert_close(alone[1][0], attention[index])


def test_the_words_regions_are_the_face_and_the_rest(parts):
    """Composed item: the mean of the subject's term against the face and the style's against everything else."""
    objective, dataset, config = parts
    batch = dataset.draw(config, step_items(config, "tuning", 0)[2:])
    columns = objective.token_columns(batch)
    with torch.no_grad(), objective.terms(batch, REFOCUSED) as (_, attention, *_):
        pass
    with torch.no_grad(), capture(objective.backbone.unet, columns, {(8, 8)}) as maps:
        noisy_latents = add_noise(batch.latents, batch.noise, batch.timesteps, objective._alphas_cumprod)
        objective._predict_noise(noisy_latents, batch.timesteps, objective._prompt_embeds(batch.prompts))
    probs = torch.stack(list(maps.values()), 2)
    subject = losses.attention_refocusing(probs[:, 0], batch.face_masks)
    style = losses.attention_refocusing(probs[:, 1], 1 - batch.face_masks)
    torch.testing.assert_close(attention, (subject + style) / 2)


def test_source_and_reference_items_count_their_one_word(parts):
    objective, dataset, config = parts
    batch = dataset.draw(config, step_items(config, "tuning", 0)[:2])
    columns = objective.token_columns(batch)
    assert columns.sum(-1).tolist() == [[1, 0], [0, 1]]


def test_an_attention_loss_counts_for_the_words_and_regions_that_are_there(parts):
    """It is 1 whatever it sees: so is an item of one word, and the mean of two; without a face the half of that."""
    objective, dataset, config = parts
    objective.attention_loss = lambda attention_probs, masks: torch.ones(len(masks))
    batch = dataset.draw(config, step_items(config, "tuning", 0))
    with torch.no_grad(), objective.terms(batch, REFOCUSED) as (_, attention, *_):
        assert attention.tolist() == [1, 1, 1]
    faceless = replace(batch, face_masks=torch.zeros_like(batch.face_masks))
    with torch.no_grad(), objective.terms(faceless, REFOCUSED) as (_, attention, *_):
        assert attention.tolist() == [0, 1, 0.5]


def test_text_that_does_not_move_is_encoded_once(parts):
    objective, dataset, config = parts
    batch = dataset.draw(config, step_items(config, "tuning", 0))
    with torch.no_grad(), objective.terms(batch, PLAIN) as (fresh, *_):
        pass
    objective.remember_text(True)
    calls = []
    with ExitStack() as stack:
        stack.enter_context(objective.backbone.text_encoder.register_forward_hook(lambda *_: calls.append(1)))
        for _ in range(2):
            with objective.terms(batch, PLAIN) as (remembered, *_):
                pass
    assert len(calls) == len(set(batch.prompts))
    torch.testing.assert_close(remembered, fresh)


def test_min_snr_divides_what_has_more_signal_than_gamma(parts):
    """abar = .9 at SNR 9: with gamma 3 a third; abar = .5 at SNR 1: the whole."""
    objective, dataset, config = parts
    objective._alphas_cumprod = torch.full((1000,), 0.5)
    objective._alphas_cumprod[:500] = 0.9
    items = [item for step in range(8) for item in step_items(config, "tuning", step)]
    batch = dataset.draw(config, items)
    with torch.no_grad(), objective.terms(batch, PLAIN) as (plain, *_):
        pass
    objective.config = objective.config.model_copy(update={"min_snr_gamma": 3.0})
    with torch.no_grad(), objective.terms(batch, PLAIN) as (weighed, *_):
        pass
    torch.testing.assert_close(weighed / plain, torch.where(batch.timesteps < 500, 1 / 3, 1.0))


def test_the_prior_is_the_model_without_its_lora_outside_the_mask():
    """Nothing before the LoRA has learned; then the distance of both predictions where the reconstruction is blind."""
    backbone, config = tiny(), small_config()
    dataset = encode(backbone, {"subject": portraits(3), "style": portraits(4, seed=1)}, config)
    batch, passes = dataset.draw(config, step_items(config, "tuning", 0)), []
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        with torch.no_grad(), run.objective.terms(batch, WITH_PRIOR) as terms:
            assert torch.equal(terms.prior, torch.zeros(3))
        for parameter in run.trainable():
            parameter.data.add_(0.05)
        watched = backbone.unet.register_forward_hook(lambda *args: passes.append(args[-1].sample))
        with watched, run.objective.terms(batch, WITH_PRIOR) as terms:
            terms.prior.sum().backward()
        base_pred, noise_pred = passes
        assert not base_pred.requires_grad
        expected = losses.masked_reconstruction(noise_pred, base_pred, 1 - batch.loss_masks)
        torch.testing.assert_close(terms.prior, expected)
        assert all(parameter.requires_grad for parameter in run.trainable())
        assert any(parameter.grad.abs().sum() > 0 for parameter in run.trainable() if parameter.grad is not None)


def test_the_weighed_sum_by_hand():
    assert Terms(2.0, 3.0, 5.0, 7.0).weighed(Terms(1.0, 0.1, 0.01, 0.001)) == pytest.approx(2.357)
