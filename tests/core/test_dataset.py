import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode, step_items
from magicapture_core.types import MagiCaptureError, Portraits
from tests.small import portraits, small_config


@pytest.fixture(scope="module")
def dataset():
    return encode(tiny(), {"subject": portraits(3), "style": portraits(4, seed=1)}, small_config())


def test_an_item_draws_the_same_alone_and_in_company(dataset):
    """So resuming needs no random state, and any split into forward passes is the same run."""
    config = small_config(accumulate=2)
    items = step_items(config, "tuning", 7)
    whole = dataset.draw(config, items)
    for index, item in enumerate(items):
        alone = dataset.draw(config, [item])
        assert torch.equal(alone.latents[0], whole.latents[index])
        assert torch.equal(alone.noise[0], whole.noise[index])
        assert alone.prompts[0] == whole.prompts[index]


def test_without_flips_nothing_is_encoded_mirrored():
    photos, plain = {"subject": portraits(2), "style": portraits(2, seed=1)}, small_config(flip=False)
    once, twice = (encode(tiny(), photos, small_config(flip=flip)) for flip in (False, True))
    for name, side in once.concepts.items():
        assert side.mean.shape == side.std.shape == (1, 2, 4, 16, 16)
        assert torch.equal(side.mean[0], twice.concepts[name].mean[0])
    items = step_items(plain, "tuning", 0)
    assert torch.equal(once.draw(plain, items).latents, twice.draw(plain, items).latents)


def test_a_step_holds_one_item_of_each_task_per_group():
    assert [item.task for item in step_items(small_config(), "inversion", 0)] == ["source", "reference"]
    config = small_config(accumulate=2)
    assert [item.task for item in step_items(config, "tuning", 0)] == ["source", "reference", "composed"] * 2


def test_steps_seeds_phases_and_groups_draw_anew(dataset):
    config = small_config(accumulate=2)
    batches = [
        dataset.draw(settings, [step_items(settings, phase, step)[place]])
        for settings, phase, step, place in (
            (config, "tuning", 0, 0),
            (config, "tuning", 1, 0),
            (config, "tuning", 0, 3),
            (config, "inversion", 0, 0),
            (small_config(seed=1), "tuning", 0, 0),
        )
    ]
    noises = [batch.noise for batch in batches]
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


def test_photos_mirrors_templates_and_timesteps_all_get_their_turn(dataset):
    config = small_config()
    batch = dataset.draw(config, [step_items(config, "tuning", step)[2] for step in range(200)])
    assert len(set(batch.prompts)) == 8
    assert batch.timesteps.min() < 50
    assert batch.timesteps.max() > 950
    assert 0.35 < (batch.face_masks[..., 1].sum((1, 2)) > 0).float().mean() < 0.65  # left when not mirrored


def test_regions_and_prompts_of_the_three_tasks(dataset):
    """A source item counts inside the face; reference and composed items are style photos and count outside it."""
    config = small_config(flip=False)
    source, reference, composed = (dataset.draw(config, [item]) for item in step_items(config, "tuning", 0))
    face = dataset.concepts["subject"].face_masks[0, :1]
    assert torch.equal(source.loss_masks, face)
    for batch in (reference, composed):
        assert torch.equal(batch.loss_masks, 1 - face)
        assert torch.equal(batch.face_masks, dataset.concepts["style"].attention_masks[0, :1])
    assert ["<subject>" in b.prompts[0] for b in (source, reference, composed)] == [True, False, True]
    assert ["<style>" in b.prompts[0] for b in (source, reference, composed)] == [False, True, True]


def test_latents_are_fresh_samples_of_the_posterior(dataset):
    """One photo, no mirror: (latent / scaling - mean) / std is standard normal over many steps."""
    config = small_config(flip=False)
    items = [step_items(config, "tuning", step)[0] for step in range(300)]
    side = dataset.concepts["subject"]
    drawn = dataset.draw(config, items).latents / dataset.scaling_factor
    distance = ((drawn[:, None] - side.mean[0]) / side.std[0]).abs().mean((2, 3, 4))  # [items, photos]
    assert 0.75 < distance.min(1).values.mean() < 0.85  # mean of |N(0,1)| is .798


def test_masks_shrink_by_area_with_half_as_the_line():
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :6, :] = 1  # rows 0..5 of cells of 4 px: the first whole, the second half
    side = encode(
        tiny(),
        {"subject": Portraits(images=torch.zeros(1, 3, 64, 64), masks=masks), "style": portraits(1)},
        small_config(),
    ).concepts["subject"]
    assert side.face_masks[0, 0, 0, :, 0].tolist() == [1.0, 1.0] + [0.0] * 14
    assert side.attention_masks[0, 0, 0, :, 0].tolist() == [1.0] + [0.0] * 7


def test_an_empty_side_is_named():
    empty = Portraits(images=torch.zeros(0, 3, 64, 64), masks=torch.zeros(0, 1, 64, 64))
    with pytest.raises(MagiCaptureError, match="style"):
        encode(tiny(), {"subject": portraits(1), "style": empty}, small_config())


@pytest.mark.parametrize(("value", "named"), [(0.0, "subject photo 2"), (1.0, "style photo 2")])
def test_a_photo_whose_mask_would_teach_nothing_is_named(value, named):
    """A black subject mask has no face to learn, a white style mask nothing around it."""
    photos = portraits(2)
    photos.masks[1] = value
    with pytest.raises(MagiCaptureError, match=named):
        encode(tiny(), {"subject": photos, "style": photos}, small_config())
