"""DDIM backwards and forwards, with the known parts of a picture held where they were on the way.

In k-space, x = z / sqrt(abar) and sigma = sqrt((1 - abar) / abar), a DDIM step without noise of its own is one of
Euler, x' = x + (sigma' - sigma) eps. So the same lines serve a UNet of diffusers and ComfyUI's samplers, whose latents
are x as they are. Knows neither model nor prompt: `predict` is all of both.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # x [B,C,h,w], sigma, a number -> eps, the noise in it


def ddim_sigmas(alphas_cumprod: Tensor, num_steps: int, strength: float) -> Tensor:
    """[K+1] noise levels from 0 up, the K first of `num_steps` that are evenly spaced in time, K at least 1.

    strength: 0..1, the share of all steps that is walked.
    """
    spacing = len(alphas_cumprod) / num_steps
    count = max(round(num_steps * strength), 1)
    timesteps = (torch.arange(1, count + 1) * spacing).round().long().sub(1).clamp(min=0)
    abar = alphas_cumprod.cpu().double()[timesteps]
    return torch.cat([torch.zeros(1), ((1 - abar) / abar).sqrt().float()])


def invert(predict: Predict, latents: Tensor, sigmas: Tensor) -> list[Tensor]:
    """Clean latents x_0 -> [x_0 .. x_K], each at its noise level: the way on which `denoise` goes back.

    sigmas: rising from 0. The noise of a step is that which the model sees in its start at the level of its end, as
    the step back will see it there; at level 0 there would be none to see.
    """
    path = [latents]
    for low, high in pairwise(sigmas):
        path.append(path[-1] + (high - low) * predict(path[-1], high))
    return path


def denoise(predict: Predict, path: list[Tensor], sigmas: Tensor, mask: Tensor) -> Tensor:
    """From the end of `invert`'s path down to clean latents; after every step x <- M x + (1 - M) x_inv.

    mask: broadcast to the latents, 0..1; where it is 0 the result is the clean latents of before, bit for bit.
    """
    x = path[-1]
    for step in range(len(sigmas) - 1, 0, -1):
        x = x + (sigmas[step - 1] - sigmas[step]) * predict(x, sigmas[step])
        x = torch.where(mask > 0, mask * x + (1 - mask) * path[step - 1], path[step - 1])
    return x
