"""On a graphics card: mixed precision, the same run as on the processor, memory given back, 512 px within 6 GB."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from magicapture_core.backbone import from_checkpoint, tiny
from magicapture_core.config import TrainConfig, parse_config
from magicapture_core.dataset import encode
from magicapture_core.fitting import resolve_dtype
from magicapture_core.sampler import generate
from magicapture_core.sefi import recipe, trainer
from magicapture_core.sefi.config import SefiConfig
from magicapture_core.sefi.identity import SefiIdentity
from magicapture_core.trainer import train
from magicapture_core.types import Portraits
from tests.small import SmallRecogniser, portraits, same, small_config, weights

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
SIX_GB = 6e9


def run(config: TrainConfig, device: torch.device, resume=None):
    """The states of a training of the tiny model, identity term included."""
    backbone, recogniser = tiny(), SmallRecogniser()
    backbone.to(device, resolve_dtype(config, device))
    dataset = encode(backbone, {"subject": portraits(2), "style": portraits(3, seed=1)}, config, recogniser)
    return [step.state() for step in train(backbone, dataset, config, resume)]


def test_a_run_is_that_of_the_processor():
    """The same draws, since they are made on the CPU; sums in another order, so not the same bits."""
    config = small_config(dtype="fp32", loss={"attention_downscale": 2, "identity_max_timestep": 1000})
    here, there = run(config, DEVICE)[-1], run(config, torch.device("cpu"))[-1]
    for name, value in there.items():
        if name.startswith("parameter."):
            torch.testing.assert_close(here[name], value, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp16"])
def test_half_precision_trains_fp32_parameters_to_finite_values(dtype):
    states = run(small_config(dtype=dtype, gradient_checkpointing=True, batch_size=3), DEVICE)
    learned = {name: value for name, value in states[-1].items() if name.startswith("parameter.")}
    assert {value.dtype for value in learned.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in learned.values())
    assert not same(states[-1], states[-2])


def test_a_resumed_run_is_the_uninterrupted_one():
    config = small_config(dtype="fp32")
    whole = run(config, DEVICE)
    resumed = run(config, DEVICE, resume=whole[2])
    for name, value in whole[-1].items():
        torch.testing.assert_close(resumed[-1][name], value, rtol=0.02, atol=1e-4)


def test_stopping_gives_the_memory_back_and_leaves_the_model_as_it_was():
    config, backbone = small_config(dtype="bf16"), tiny()
    backbone.to(DEVICE, torch.bfloat16)
    dataset = encode(backbone, {"subject": portraits(2), "style": portraits(2, seed=1)}, config)
    modules = (backbone.unet, backbone.text_encoder, backbone.vae)
    before, allocated = weights(*modules), torch.cuda.memory_allocated(DEVICE)
    with closing(train(backbone, dataset, config)) as steps:
        for _ in range(5):
            step = next(steps)
    del step, steps
    assert torch.cuda.memory_allocated(DEVICE) - allocated < 1e6
    assert same(weights(*modules), before)


def test_an_identity_trains_in_bf16_and_goes_on_from_its_state():
    """The fused AdamW on fp32 parameters on the card; from a state that lies on the CPU, as one out of a file does."""
    backbone = tiny()
    backbone.to(DEVICE, torch.bfloat16)
    config = SefiConfig.preset("tiny").model_copy(update={"num_steps": 4, "gradient_checkpointing": True})
    photos = recipe.encode(backbone, portraits(1), config.flip)
    before = weights(backbone.unet, backbone.text_encoder, backbone.vae)
    whole = [step.state() for step in trainer.train(backbone, photos, config)]
    learned = {name: value for name, value in whole[-1].items() if name.startswith("parameter.")}
    assert {value.dtype for value in learned.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in learned.values())
    assert not same(whole[-1], whole[-2])
    state = {name: value.cpu() for name, value in whole[1].items()}
    *_, resumed = trainer.train(backbone, photos, config, state)
    assert resumed.step == 4
    for name, value in resumed.run.state().items():
        torch.testing.assert_close(value, whole[-1][name], rtol=0.02, atol=1e-3)
    assert same(weights(backbone.unet, backbone.text_encoder, backbone.vae), before)


def test_an_identity_is_sampled_as_on_the_processor():
    """Every stage of it, keys and values each with their own; and in bf16 to a picture."""
    stages = torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    person = SefiIdentity(
        name="me",
        architecture="magicapture-tiny",
        placeholder="<person>",
        initializer="person",
        stages=stages,
        template="a photo of {person}",
    )
    backbone, pictures = tiny(), []
    for device, dtype in ((torch.device("cpu"), torch.float32), (DEVICE, torch.float32), (DEVICE, torch.bfloat16)):
        backbone.to(device, dtype)
        made = generate(backbone, None, "a photo of <person>", identities=[person], num_steps=5, guidance=2.0)
        pictures.append(made.float().cpu())
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=0.01)
    assert pictures[2].isfinite().all()
    assert pictures[2].std() > 0.01


def test_true_size_at_512_px_fits_a_6_gb_card(full_checkpoint, facts):
    config = parse_config(
        {"gradient_checkpointing": True, "inversion": {"num_steps": 1}, "tuning": {"num_steps": 3}, "dtype": "bf16"}
    )
    backbone = from_checkpoint(full_checkpoint)
    backbone.to(DEVICE, torch.bfloat16)
    masks = torch.zeros(1, 1, 512, 512)
    masks[..., 128:384, 128:384] = 1
    photo = Portraits(images=torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)), masks=masks)
    dataset = encode(backbone, {"subject": photo, "style": photo}, config)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    seconds = [step.seconds for step in train(backbone, dataset, config)]
    peak = torch.cuda.max_memory_allocated(DEVICE)
    facts.append(f"gpu: true SD1.5 size at 512 px, peak {peak / 1e9:.1f} GB, {seconds[-1]:.2f} s a tuning step")
    assert peak < SIX_GB
    assert generate(backbone, None, "a photo", num_steps=2, size=(64, 64)).isfinite().all()
