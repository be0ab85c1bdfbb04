"""The core at SD1.5's true size, on random weights: three and three steps, the file that comes of them, and the way to
noise and back."""

import pytest
import torch

from magicapture_core import artifact, recipe
from magicapture_core.backbone import from_checkpoint
from magicapture_core.config import parse_config
from magicapture_core.diir.restorer import Walk
from magicapture_core.sampler import generate
from magicapture_core.types import SD1, Portraits
from tests.core.test_diir import psnr, there_and_back

pytestmark = pytest.mark.full
SIDE = 128


def noise_portraits(seed: int) -> Portraits:
    masks = torch.zeros(2, 1, SIDE, SIDE)
    masks[..., 32:96, 32:96] = 1
    return Portraits(images=torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)), masks=masks)


def test_photos_to_a_lora_of_64_layers_that_changes_the_picture(full_checkpoint, tmp_path, facts):
    config = parse_config({"resolution": SIDE, "inversion": {"num_steps": 3}, "tuning": {"num_steps": 3}})
    backbone = from_checkpoint(full_checkpoint)
    said, seconds = [], []
    result = recipe.personalize(
        backbone,
        {"subject": noise_portraits(0), "style": noise_portraits(1)},
        config,
        name="true_size",
        folder=tmp_path / "work",
        save=lambda made: list(artifact.save(made, tmp_path)),
        on_estimate=said.append,
        on_step=lambda step: seconds.append(step.seconds),
    )
    facts.append(f"full: true SD1.5 size at {SIDE} px, estimate {said[0]}; took {seconds[-1]:.1f} s a tuning step")
    trained = artifact.load(result.files[0])
    assert trained.architecture == SD1
    assert sum(value.numel() for key, value in trained.lora.items() if not key.endswith("alpha")) == 397_824
    assert len(trained.lora) == 3 * 64
    assert [token.vectors.shape for token in trained.tokens] == [(1, 768)] * 2
    before, after = (
        generate(backbone, trained, strength=strength, num_steps=2, size=(64, 64), guidance=1.0)
        for strength in (0.0, 1.0)
    )
    assert not torch.equal(before, after)


def test_inversion_and_back_is_where_it_began(full_checkpoint):
    """In latent space: random weights draw nothing."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    far, back = there_and_back(from_checkpoint(full_checkpoint), latents, Walk(num_steps=20))
    assert psnr(far, latents) < 15
    assert psnr(back, latents) > 25
