"""The run as a whole, on real classes of a tiny size."""

from contextlib import closing
from functools import partial
from itertools import pairwise

import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode, step_items
from magicapture_core.losses import attention_refocusing
from magicapture_core.objective import Terms
from magicapture_core.trainer import open_run, train
from magicapture_core.types import MagiCaptureError
from tests.small import portraits, same, small_config, weights


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def dataset(backbone):
    return encode(backbone, {"subject": portraits(3), "style": portraits(4, seed=1)}, small_config())


def run_states(backbone, dataset, config, resume=None, attention_loss=None):
    return [step.state() for step in train(backbone, dataset, config, resume, attention_loss)]


def modules(backbone):
    return backbone.unet, backbone.text_encoder, backbone.vae


def test_phase_one_moves_the_words_and_phase_two_the_lora_too(backbone, dataset):
    config = small_config()
    seen, tokens = [], []
    for step in train(backbone, dataset, config):
        seen.append((step.phase, step.step, len(step.run.lora()["unet"]) > 0))
        tokens.append([token.vectors for token in step.run.tokens()])
        ups = [layer.up.abs().sum() for layer in step.run.lora()["unet"].values()]
        assert all(up > 0 for up in ups)
    assert seen == [("inversion", i, False) for i in (1, 2, 3)] + [("tuning", i, True) for i in (4, 5, 6)]
    for before, after in pairwise(tokens):
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_base_model_ends_bit_identical_with_every_option_on(backbone, dataset):
    before = weights(*modules(backbone))
    config = small_config(
        lora={"text_encoder": True, "targets": "attention+ff"}, gradient_checkpointing=True, batch_size=3
    )
    assert len(run_states(backbone, dataset, config)) == 6
    assert same(weights(*modules(backbone)), before)


def test_old_rows_are_bit_identical_while_it_runs(backbone, dataset):
    table = backbone.text_encoder.get_input_embeddings().weight
    before = table.clone()
    for step in train(backbone, dataset, small_config()):
        inside = step.run.backbone.text_encoder.get_input_embeddings()
        assert inside.base.weight is table
        assert torch.equal(table, before)


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_stopping_leaves_the_models_as_they_were(backbone, dataset, stop_after):
    before, objects = weights(*modules(backbone)), list(backbone.unet.modules())
    with closing(train(backbone, dataset, small_config())) as steps:
        for step in steps:
            if step.step == stop_after:
                break
    assert same(weights(*modules(backbone)), before)
    assert all(old is new for old, new in zip(objects, backbone.unet.modules(), strict=True))


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(backbone, dataset, stop_after):
    config = small_config(lora={"text_encoder": True})
    whole = run_states(backbone, dataset, config)
    resumed = run_states(backbone, dataset, config, resume=whole[stop_after - 1])
    assert len(resumed) == 6 - stop_after
    assert same(resumed[-1], whole[-1])


def test_previews_do_not_disturb_the_run(backbone, dataset):
    config = small_config()
    undisturbed = run_states(backbone, dataset, config)[-1]
    for step in train(backbone, dataset, config):
        torch.manual_seed(step.step)
        pictures = step.run.preview("a <subject> in the <style> style", num_steps=2, num_images=2)
        assert pictures.shape == (2, 3, 64, 64)
        last = step.state()
    assert same(last, undisturbed)


def test_the_split_into_passes_does_not_change_the_result(backbone, dataset):
    """accumulate 2: six items a step, in six passes or in one."""
    one, six = (run_states(backbone, dataset, small_config(accumulate=2, batch_size=size))[-1] for size in (1, 6))
    for key in one:
        if key.startswith("parameter."):
            torch.testing.assert_close(one[key], six[key], atol=2e-5, rtol=1e-3)


def test_accumulating_is_averaging_gradients(backbone, dataset):
    """The gradient of two groups in one step is the mean of the gradients of the groups."""
    config = small_config(accumulate=2)
    items = step_items(config, "tuning", 0)

    def gradient(groups):
        with open_run(backbone, dataset, config) as run:
            run.begin("tuning", {}, midway=False)
            for group in groups:
                run.backward(dataset.draw(config, group), "tuning", share=1 / len(group) / len(groups))
            return [parameter.grad for parameter in run.trainable() if parameter.grad is not None]

    both, first, second = gradient([items[:3], items[3:]]), gradient([items[:3]]), gradient([items[3:]])
    assert both
    for together, one, two in zip(both, first, second, strict=True):
        torch.testing.assert_close(together, (one + two) / 2, atol=1e-6, rtol=1e-3)


def test_learning_rates_fall_in_a_straight_line_to_zero(backbone, dataset):
    config = small_config(tuning={"num_steps": 4})
    rates = [
        [group["lr"] for group in step.run._optimizer.param_groups]
        for step in train(backbone, dataset, config)
        if step.phase == "tuning"
    ]
    assert rates == [[1e-5 * f, 1e-4 * f] for f in (1, 0.75, 0.5, 0.25)]


def test_words_with_a_learning_rate_of_zero_stay(backbone, dataset):
    config = small_config(inversion={"num_steps": 0}, tuning={"num_steps": 2, "token_learning_rate": 0})
    first, last = [[token.vectors for token in step.run.tokens()] for step in train(backbone, dataset, config)]
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_the_words_move_beside_a_lora_of_the_text_encoder(backbone, dataset):
    """peft freezes what is not its own when it is injected."""
    config = small_config(inversion={"num_steps": 0}, tuning={"num_steps": 2}, lora={"text_encoder": True})
    first, last = [[token.vectors for token in step.run.tokens()] for step in train(backbone, dataset, config)]
    assert all(not torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_no_refocusing_in_phase_one(backbone, dataset):
    attention = [float(step.losses.attention) for step in train(backbone, dataset, small_config())]
    assert attention[:3] == [0, 0, 0]
    assert all(value > 0 for value in attention[3:])


def test_another_attention_loss_takes_refocusings_place(backbone, dataset):
    """The configuration's own, handed in, is the same bits; another trains differently, and at weight 0 not at all."""

    def all_over(attention_probs, masks):
        return attention_probs.mean((1, 2, 3, 4)) * masks.mean((1, 2, 3))

    config, unweighed = small_config(), small_config(loss={"attention_downscale": 2, "attention_weight": 0})
    averaged = small_config(loss={"attention_downscale": 2, "attention_reduce": "mean_then_square"})
    own = run_states(backbone, dataset, config)[-1]
    mean_then_square = partial(attention_refocusing, reduce="mean_then_square")
    assert same(run_states(backbone, dataset, config, attention_loss=attention_refocusing)[-1], own)
    assert same(
        run_states(backbone, dataset, config, attention_loss=mean_then_square)[-1],
        run_states(backbone, dataset, averaged)[-1],
    )
    assert not same(run_states(backbone, dataset, averaged)[-1], own)
    assert not same(run_states(backbone, dataset, config, attention_loss=all_over)[-1], own)
    assert same(
        run_states(backbone, dataset, unweighed, attention_loss=all_over)[-1],
        run_states(backbone, dataset, unweighed)[-1],
    )


def test_twenty_steps_lower_the_loss(backbone, dataset):
    """Of the same fixed items, without the LoRA's first step and after its last."""
    config = small_config(
        inversion={"num_steps": 0}, tuning={"num_steps": 20, "lora_learning_rate": 5e-3}, lora={"lora_rank": 16}
    )
    items = [item for step in range(1000, 1004) for item in step_items(config, "tuning", step)]

    def loss(run):
        with (
            torch.no_grad(),
            run.objective.terms(dataset.draw(config, items), Terms(1, 0, 0, 0)) as (reconstruction, *_),
        ):
            return float(reconstruction.mean())

    losses = [loss(step.run) for step in train(backbone, dataset, config) if step.step in (1, 20)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_train_fp32_parameters(dataset, dtype):
    backbone = tiny()
    backbone.to("cpu", dtype)
    config = small_config(gradient_checkpointing=True, inversion={"num_steps": 1}, tuning={"num_steps": 2})
    states = run_states(backbone, dataset, config)
    assert all(value.isfinite().all() for value in states[-1].values())
    assert {v.dtype for key, v in states[-1].items() if key.startswith("parameter.")} == {torch.float32}
    assert not same(states[-1], states[-2])
    assert same(run_states(backbone, dataset, config, resume=states[1])[-1], states[-1])


def test_a_loss_that_is_not_a_number_stops_with_the_step(backbone, dataset):
    broken = encode(backbone, {"subject": portraits(1), "style": portraits(1)}, small_config())
    broken.concepts["subject"].mean[:] = float("nan")
    with pytest.raises(MagiCaptureError, match="loss is not a number at step 1"):
        run_states(backbone, broken, small_config())


def test_a_gradient_that_is_not_a_number_moves_nothing(backbone, dataset):
    config = small_config(inversion={"num_steps": 2}, tuning={"num_steps": 0})
    with open_run(backbone, dataset, config) as run:
        run.begin("inversion", {}, midway=False)
        run.update("inversion", 0, fraction_left=1.0)
        before = run.state()
        run.trainable()[0].register_hook(lambda gradient: gradient / 0)
        with pytest.raises(MagiCaptureError, match="gradient is not a number at step 2"):
            run.update("inversion", 1, fraction_left=1.0)
        assert same(run.state(), before)


def test_a_grid_without_attention_layers_is_named(backbone, dataset):
    config = small_config(loss={"attention_downscale": 1, "attention_weight": 2.5}, inversion={"num_steps": 0})
    tall = encode(backbone, {"subject": portraits(1), "style": portraits(1)}, config)
    grids = {tuple(tall.concepts["subject"].attention_masks.shape[-2:])}
    assert grids == {(16, 16)}
    with pytest.raises(MagiCaptureError, match="attention_downscale"):
        run_states(
            backbone,
            encode(
                backbone,
                {"subject": portraits(1), "style": portraits(1)},
                small_config(loss={"attention_downscale": 8}),
            ),
            config.model_copy(update={"loss": small_config(loss={"attention_downscale": 8}).loss}),
        )


def test_the_words_lengths_are_pulled_towards_those_of_the_models_own(backbone, dataset):
    """Learning rate 1e-3 and three steps of falling rates: lam = .1, .0667, .0333 of the way; the words hardly move."""
    settings = {"num_steps": 3, "token_learning_rate": 1e-3}
    wanted = backbone.text_encoder.get_input_embeddings().weight.norm(dim=1).mean()

    def lengths(pull_norm):
        config = small_config(inversion={**settings, "pull_norm": pull_norm}, tuning={"num_steps": 0})
        *_, last = (
            [token.vectors.norm(dim=1) for token in step.run.tokens()] for step in train(backbone, dataset, config)
        )
        return torch.cat(last)

    free, pulled = lengths(False), lengths(True)
    remaining = 0.9 * (1 - 0.2 / 3) * (1 - 0.1 / 3)
    torch.testing.assert_close(pulled - wanted, (free - wanted) * remaining, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_split_adapters_learn_each_from_its_own_items(backbone, dataset, checkpointing):
    """Source items give gradient to the subject's half alone, reference items to the style's, composed ones to both."""
    split = {"adapters": "split", "text_encoder": True}
    config = small_config(lora=split, gradient_checkpointing=checkpointing, batch_size=3)
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        parameters = {name: p for name, p in run._parameters.items() if name.startswith("lora.")}
        for parameter in parameters.values():
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        for item, acts in zip(step_items(config, "tuning", 0), ((1, 0), (0, 1), (1, 1)), strict=True):
            run.backward(dataset.draw(config, [item]), "tuning", share=1.0)
            for parameter in parameters.values():
                assert parameter.grad is not None
                halves = parameter.grad.chunk(2, 0 if parameter.shape[0] == 8 else 1)  # down [2r,in], up [out,2r]
                assert [bool(half.abs().sum() > 0) for half in halves] == [bool(act) for act in acts]
                parameter.grad = None


def test_split_adapters_in_one_pass_are_those_in_three(backbone, dataset):
    one, three = (
        run_states(backbone, dataset, small_config(lora={"adapters": "split"}, batch_size=size))[-1] for size in (1, 3)
    )
    for key in one:
        if key.startswith("parameter."):
            torch.testing.assert_close(one[key], three[key], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_more_groups_a_step_do_not_scale_the_learning_rate(backbone, dataset, accumulate):
    """AdamW's first step is the learning rate in every coordinate, however many groups the gradient is the mean of."""
    rate = 3e-4
    config = small_config(accumulate=accumulate, inversion={"num_steps": 0}, tuning={"lora_learning_rate": rate})
    with closing(train(backbone, dataset, config)) as steps:
        ups = torch.cat([layer.up.flatten() for layer in next(steps).run.lora()["unet"].values()])
    assert ups.abs().max() == pytest.approx(rate, rel=1e-3)
