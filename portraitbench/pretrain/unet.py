"""Stage 3, the UNet: eps prediction on the VAE's latents under the text encoder's states, one caption in ten empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from magicapture_core import backbone as backbones
from magicapture_core.backbone import TINY_WEIGHTS, Backbone
from magicapture_core.diffusion import add_noise
from magicapture_core.sampler import encode_prompt
from magicapture_core.tokens import Vocabulary

from ..nets import save_weights
from ..pictures import load_pictures
from ..world import CANVASES, Split
from . import stage
from .fresh import make_unet
from .latents import Latents, load_latents

STAGE = stage.Stage(
    name="unet",
    num_steps=20_000,
    learning_rate=1e-3,
    average=0.999,
    learns_from=(TINY_WEIGHTS["vae"], TINY_WEIGHTS["text_encoder"]),
)
COUNTS = dict(zip(CANVASES, (48_000, 8_000, 8_000, 8_000), strict=True))  # pictures of each canvas
BATCH = 32  # on the smallest canvas; on larger ones as many as cost the same
EMPTY_SHARE = 0.1  # of the captions, for guidance
LEVELLING = 0.75


@dataclass(frozen=True, eq=False)
class Captioned:
    """One canvas: latents [N,C,h,w] and input_ids [N,77]."""

    latents: Latents
    input_ids: Tensor

    @property
    def batch(self) -> int:
        height, width = self.latents.mean.shape[-2:]
        return BATCH * 16 * 16 // (height * width)


class Batch(NamedTuple):
    """latents, noise: [B,C,h,w]; timesteps [B]; prompt_embeds [B,77,D]."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor


class Captions:
    """Draws batches of one canvas each, canvases by how many pictures they have."""

    def __init__(self, canvases: list[Captioned], backbone: Backbone) -> None:
        self._canvases, self._backbone = canvases, backbone
        self._empty_ids = Vocabulary(backbone.tokenizer, {}).encode([""])
        sizes = np.array([len(canvas.latents) for canvas in canvases])
        self._shares = sizes / sizes.sum()

    def draw(self, generator: np.random.Generator) -> Batch:
        canvas = self._canvases[generator.choice(len(self._canvases), p=self._shares)]
        chosen = torch.from_numpy(generator.integers(len(canvas.latents), size=canvas.batch))
        mean, std = canvas.latents.mean[chosen], canvas.latents.std[chosen]
        first, second = (torch.from_numpy(generator.standard_normal(mean.shape, np.float32)) for _ in range(2))
        empty = torch.from_numpy(generator.random(canvas.batch) < EMPTY_SHARE)
        input_ids = torch.where(empty[:, None], self._empty_ids, canvas.input_ids[chosen])
        with torch.no_grad():
            prompt_embeds = encode_prompt(self._backbone, input_ids)
        return Batch(
            latents=(mean + std * first) * self._backbone.vae.config.scaling_factor,
            noise=second,
            timesteps=torch.from_numpy(generator.integers(1000, size=canvas.batch)),
            prompt_embeds=prompt_embeds,
        )


class Denoiser(nn.Module):
    """A UNet and the loss of one batch: squared error, weighted so that every noise level counts alike.

    The plain error falls about as abar_t^(3/4): 0.38 near the picture, 0.016 near the noise, where a prompt decides the
    most.

    In bfloat16 with attention spelled out a step takes 0.5 s of one core, in float32 0.8 s; the fused attention's
    backward pass is slower in bfloat16 than in float32 there. Compiled, two cores take 0.25 s instead of 0.38 s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unet = make_unet()
        self.unet.set_attn_processor(AttnProcessor())
        self._alphas_cumprod = backbones.noise_scheduler().alphas_cumprod

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        alphas_cumprod = self._alphas_cumprod.to(latents.device)
        noisy_latents = add_noise(latents, noise, timesteps, alphas_cumprod)
        with torch.autocast(latents.device.type, torch.bfloat16):
            noise_pred = self.unet(noisy_latents, timesteps, prompt_embeds).sample
        errors = (noise_pred.float() - noise).square().mean((1, 2, 3))
        return (errors * alphas_cumprod[timesteps] ** -LEVELLING).mean()


def load_captioned(split: Split, canvas: tuple[int, int], count: int, backbone: Backbone) -> Captioned:
    pictures = load_pictures(split, *canvas, count)
    name = f"{split}-{canvas[0]}x{canvas[1]}"
    vocabulary = Vocabulary(backbone.tokenizer, {})
    return Captioned(load_latents(name, pictures, backbone.vae), vocabulary.encode(pictures.captions.tolist()))


def pretrain() -> None:
    backbone = backbones.tiny()
    captions = Captions(
        [load_captioned("pretrain", canvas, count, backbone) for canvas, count in COUNTS.items()], backbone
    )
    held_out = Captions([load_captioned("tuning", (64, 64), 256, backbone)], backbone)
    seen = [held_out.draw(np.random.default_rng(number)) for number in range(8)]

    @torch.no_grad()
    def score(model: Any) -> dict[str, float]:
        return {"held_out": float(torch.stack([model(*batch) for batch in seen]).mean())}

    torch.manual_seed(STAGE.seed)
    model = Denoiser()
    model.unet.compile(dynamic=False)  # once for each canvas, a minute or so; needs a C++ compiler
    trained = stage.run(STAGE, model, captions.draw, Denoiser.__call__, score)
    save_weights(trained.unet, TINY_WEIGHTS["unet"])
