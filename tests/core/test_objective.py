"""One UNet pass per item; each term where it belongs."""

from contextlib import ExitStack

import pytest
import torch

from magicapture_core import losses
from magicapture_core.attention import capture
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode, step_items
from magicapture_core.diffusion import add_noise
from magicapture_core.trainer import open_run
from tests.small import portraits, small_config


@pytest.fixture
def parts():
    backbone, config = tiny(), small_config()
    dataset = encode(backbone, portraits(3), portraits(4, seed=1), config)
    with open_run(backbone, dataset, config) as run:
        yield run.objective, dataset, config


def test_one_unet_pass_however_many_terms(parts):
    objective, dataset, config = parts
    calls = []
    handle = objective.backbone.unet.register_forward_hook(lambda *_: calls.append(1))
    with handle, objective.terms(dataset.draw(config, step_items(config, "tuning", 0)), refocus=True):
        pass
    assert len(calls) == 1


def test_a_batch_is_the_mean_of_its_items(parts):
    objective, dataset, config = parts
    items = step_items(config, "tuning", 0)
    with torch.no_grad(), objective.terms(dataset.draw(config, items), refocus=True) as (together, attention, _):
        pass
    for index, item in enumerate(items):
        with torch.no_grad(), objective.terms(dataset.draw(config, [item]), refocus=True) as alone:
            torch.testing.assert_close(alone[0][0], together[index])
            torch.testing.assert_close(alone[1][0], attention[index])


def test_the_words_regions_are_the_face_and_the_rest(parts):
    """Composed item: the mean of the subject's term against the face and the style's against everything else."""
    objective, dataset, config = parts
    batch = dataset.draw(config, step_items(config, "tuning", 0)[2:])
    columns = objective.token_columns(batch.prompts)
    with torch.no_grad(), objective.terms(batch, refocus=True) as (_, attention, _):
        pass
    with torch.no_grad(), capture(objective.backbone.unet, columns, {(8, 8)}) as maps:
        noisy_latents = add_noise(batch.latents, batch.noise, batch.timesteps, objective._alphas_cumprod)
        objective._predict_noise(noisy_latents, batch.timesteps, batch.prompts)
    probs = torch.stack(list(maps.values()), 2)
    subject = losses.attention_refocusing(probs[:, 0], batch.face_masks)
    style = losses.attention_refocusing(probs[:, 1], 1 - batch.face_masks)
    torch.testing.assert_close(attention, (subject + style) / 2)


def test_source_and_reference_items_count_their_one_word(parts):
    objective, dataset, config = parts
    batch = dataset.draw(config, step_items(config, "tuning", 0)[:2])
    columns = objective.token_columns(batch.prompts)
    assert columns.sum(-1).tolist() == [[1, 0], [0, 1]]


def test_text_that_does_not_move_is_encoded_once(parts):
    objective, dataset, config = parts
    batch = dataset.draw(config, step_items(config, "tuning", 0))
    with torch.no_grad(), objective.terms(batch, refocus=False) as (fresh, *_):
        pass
    objective.remember_text(True)
    calls = []
    with ExitStack() as stack:
        stack.enter_context(objective.backbone.text_encoder.register_forward_hook(lambda *_: calls.append(1)))
        for _ in range(2):
            with objective.terms(batch, refocus=False) as (remembered, *_):
                pass
    assert len(calls) == len(set(batch.prompts))
    torch.testing.assert_close(remembered, fresh)
