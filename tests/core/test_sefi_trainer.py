"""SeFi-IDE's run as a whole, on real classes of a tiny size: the identity moves, and nothing else does."""

from contextlib import closing

import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.estimate import estimate
from magicapture_core.objective import autocast
from magicapture_core.sefi.config import parse_sefi_config
from magicapture_core.sefi.objective import plain_word
from magicapture_core.sefi.recipe import encode
from magicapture_core.sefi.trainer import PHASE, open_run, train
from magicapture_core.tokens import stage_of
from tests.small import portraits, same, weights

SMALL = {"resolution": 64, "attention_downscale": 1, "num_steps": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def photos(backbone):
    return encode(backbone, portraits(1), flip=True)


def settings(**changes):
    return parse_sefi_config({**SMALL, **changes})


def states(backbone, photos, config, resume=None):
    return [step.state() for step in train(backbone, photos, config, resume)]


@pytest.mark.parametrize("parts", ["block", "vectors"])
@pytest.mark.parametrize("split", [True, False])
def test_the_identity_moves_and_the_model_ends_bit_identical(backbone, photos, parts, split):
    modules = backbone.unet, backbone.text_encoder, backbone.vae
    before, objects = weights(*modules), list(backbone.text_encoder.modules())
    config = settings(parts=parts, key_value_split=split, accumulate=2, batch_size=2, gradient_checkpointing=True)
    words = [step.run.token() for step in train(backbone, photos, config)]
    assert same(weights(*modules), before)
    assert all(old is new for old, new in zip(objects, backbone.text_encoder.modules(), strict=True))
    assert words[-1].vectors.shape == (10, len(plain_word(backbone, config)))
    assert not torch.equal(words[-1].vectors, words[0].vectors)
    roles = words[-1].vectors.unflatten(0, (5, 2))
    assert torch.equal(roles[:, 0], roles[:, 1]) is not split


def test_gradients_reach_the_identity_alone(backbone, photos):
    config = settings(accumulate=8, batch_size=8)
    with open_run(backbone, photos, config) as run:
        run.begin(PHASE, {}, midway=False)
        run.backward(run.draw(run.items(PHASE, 0)), PHASE, share=1 / 8)
        own = {id(parameter) for parameter in run.trainable()}
        models = (backbone.unet, backbone.text_encoder, backbone.vae)
        reached = [p for model in models for p in model.parameters() if p.grad is not None]
        assert reached
        assert {id(parameter) for parameter in reached} <= own


def test_a_step_moves_the_words_of_its_own_timestep_alone(backbone, photos):
    """One item a step, no memory of the optimizer yet: of five stages one moves, that of the item's t."""
    stages, plain = set(), plain_word(backbone, settings())
    for seed in range(6):
        config = settings(parts="vectors", seed=seed)
        with closing(train(backbone, photos, config)) as steps:
            step = next(steps)
            [t] = step.run.draw(step.run.items(PHASE, 0)).timesteps.tolist()
            moved = (step.run.token().vectors != plain).any(1).unflatten(0, (5, 2))
        stages.add(stage := stage_of(t, 5))
        assert [index for index, both in enumerate(moved.tolist()) if any(both)] == [stage]
        assert moved[stage].all()
    assert len(stages) > 1


def test_every_item_of_every_step_is_drawn_anew(backbone, photos):
    with open_run(backbone, photos, settings(accumulate=2)) as run:
        noise = [run.draw(run.items(PHASE, step)).noise for step in (0, 1, 0)]
    assert torch.equal(noise[0], noise[2])
    assert len({float(item.sum()) for both in noise for item in both}) == 4


@pytest.mark.parametrize("parts", ["block", "vectors"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(backbone, photos, parts, stop_after):
    config = settings(parts=parts, accumulate=2)
    whole = states(backbone, photos, config)
    resumed = states(backbone, photos, config, resume=whole[stop_after - 1])
    assert len(resumed) == 4 - stop_after
    assert same(resumed[-1], whole[-1])


def test_a_preview_does_not_disturb_and_shows_the_words_as_they_are(backbone, photos):
    config = settings(parts="vectors", learning_rate=0.1)
    undisturbed, pictures = states(backbone, photos, config)[-1], []
    for step in train(backbone, photos, config):
        pictures.append(step.run.preview("a photo of <person>", num_steps=2))
        last = step.state()
    assert same(last, undisturbed)
    assert not torch.equal(pictures[0], pictures[-1])


def test_training_lowers_the_reconstruction_of_the_photo(backbone, photos):
    """Of the same fixed items, after the first step and after the last."""
    config = settings(parts="vectors", num_steps=30, accumulate=4, batch_size=4)
    losses = []
    for step in train(backbone, photos, config):
        if step.step in (1, 30):
            fixed = [item for at in range(900, 904) for item in step.run.items(PHASE, at)]
            with torch.no_grad(), step.run.objective.terms(step.run.draw(fixed), step.run.weights(PHASE)) as terms:
                losses.append(float(terms.reconstruction.mean()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_train_an_fp32_identity(photos, dtype):
    backbone, config = tiny(), settings(gradient_checkpointing=True)
    backbone.to("cpu", dtype)
    made = states(backbone, photos, config)
    learned = {key: value for key, value in made[-1].items() if key.startswith("parameter.")}
    assert {value.dtype for value in learned.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in learned.values())
    assert not same(made[-1], made[0])
    assert same(states(backbone, photos, config, resume=made[1])[-1], made[-1])


def test_the_estimate_counts_the_block(backbone, photos):
    """31 million numbers of the paper's block at SD1.5's width; here few, but more than those of the vectors."""
    block, vectors = (
        estimate(open_run(backbone, photos, settings(parts=parts))).peak_bytes for parts in ("block", "vectors")
    )
    trainable = {}
    for parts in ("block", "vectors"):
        with open_run(backbone, photos, settings(parts=parts)) as run:
            run.begin(PHASE, {}, midway=False)
            trainable[parts] = sum(parameter.numel() for parameter in run.trainable())
    assert block - vectors >= 16 * (trainable["block"] - trainable["vectors"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_trains_in_half_precision_is_what_is_saved(photos, dtype):
    """The block itself computes in fp32: only its words are rounded, as those of the saved file will be."""
    backbone, config = tiny(), settings(parts="block", learning_rate=0.01)
    backbone.to("cpu", dtype)
    with closing(train(backbone, photos, config)) as steps:
        saved = next(steps).run.token().vectors
        with autocast(backbone.unet), torch.no_grad():
            trained = backbone.text_encoder.get_input_embeddings()(torch.arange(-1, -11, -1)[None])[0]
    assert torch.equal(trained, saved.to(trained.dtype))
