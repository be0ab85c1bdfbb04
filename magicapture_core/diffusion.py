"""The forward process and its one-step inverse. Pure functions of tensors; latents [B,C,h,w], timesteps [B]."""

from __future__ import annotations

from torch import Tensor

NUM_TIMESTEPS = 1000


def _coefficients(alphas_cumprod: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), each [B,1,1,1]."""
    abar = alphas_cumprod[timesteps][:, None, None, None]
    return abar.sqrt(), (1 - abar).sqrt()


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
    signal, noise_level = _coefficients(alphas_cumprod, timesteps)
    return signal * latents + noise_level * noise


def min_snr_weights(timesteps: Tensor, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR with SNR = abar_t / (1 - abar_t), for noise predictions (arXiv 2303.09556). Gives [B]."""
    abar = alphas_cumprod[timesteps]
    return (gamma * (1 - abar) / abar).clamp(max=1)


def predict_x0(noisy_latents: Tensor, noise_pred: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The one-step estimate of the clean latents, (z_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t)."""
    signal, noise_level = _coefficients(alphas_cumprod, timesteps)
    return (noisy_latents - noise_level * noise_pred) / signal
