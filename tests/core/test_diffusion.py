from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from magicapture_core.diffusion import add_noise, min_snr_weights, predict_x0

SCHEDULER = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TIMESTEPS: Any = torch.tensor([0, 500, 999])


def test_add_noise_is_the_schedulers():
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = add_noise(latents, noise, TIMESTEPS, SCHEDULER.alphas_cumprod)
    torch.testing.assert_close(ours, SCHEDULER.add_noise(latents, noise, TIMESTEPS))


def test_predict_x0_undoes_add_noise():
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alphas_cumprod = SCHEDULER.alphas_cumprod.double()
    noisy = add_noise(latents, noise, TIMESTEPS, alphas_cumprod)
    torch.testing.assert_close(predict_x0(noisy, noise, TIMESTEPS, alphas_cumprod), latents)


def test_min_snr_weights_are_diffusers():
    snr = compute_snr(SCHEDULER, TIMESTEPS)
    ours = min_snr_weights(TIMESTEPS, SCHEDULER.alphas_cumprod, 5.0)
    torch.testing.assert_close(ours, snr.clamp(max=5) / snr)
