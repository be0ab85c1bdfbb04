"""Stage 1, the VAE: 64 x 64 crops of all canvases to 4 x 16 x 16 latents and back, faces weighing more than walls."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from magicapture_core.backbone import TINY_FOLDER, TINY_WEIGHTS
from magicapture_core.files import write_atomic

from ..nets import save_weights
from ..pictures import Pictures, load_pictures
from ..world import CANVASES
from . import stage
from .fresh import make_vae

STAGE = stage.Stage(name="vae", num_steps=9_000, learning_rate=1e-3)
BATCH = 16
CROP = 64
COUNTS = dict(zip(CANVASES, (20_000, 5_000, 4_000, 5_000), strict=True))  # pictures of each canvas
FACE_WEIGHT = 4.0  # of a pixel inside a face
KL_WEIGHT = 3e-4  # per latent number: noise of a few hundredths, so that the decoder forgives a UNet's errors


class Crops:
    """Random 64 x 64 windows with their face masks, any canvas, mirrored or not."""

    def __init__(self, canvases: list[Pictures]) -> None:
        self.canvases = canvases
        sizes = np.array([len(pictures) for pictures in canvases])
        self._shares = sizes / sizes.sum()

    def draw(self, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """pixel_values [B,3,64,64] in -1..1 and masks [B,1,64,64]."""
        images, masks = zip(*(self._crop(generator) for _ in range(BATCH)), strict=True)
        pixel_values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return pixel_values, torch.from_numpy(np.stack(masks))[:, None].float()

    def _crop(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        pictures = self.canvases[generator.choice(len(self.canvases), p=self._shares)]
        number = generator.integers(len(pictures))
        height, width = pictures.images.shape[1:3]
        top, left = generator.integers(height - CROP + 1), generator.integers(width - CROP + 1)
        window = (number, slice(top, top + CROP), slice(left, left + CROP))
        turn = slice(None, None, -1 if generator.random() < 0.5 else 1)
        return pictures.images[window][:, turn], pictures.masks[window][:, turn]


class Autoencoder(nn.Module):
    """The loss of one batch: weighted squared error and the pull of the posterior towards N(0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = make_vae()

    def forward(self, pixel_values: Tensor, masks: Tensor, noise: Tensor) -> Tensor:
        posterior = self.vae.encode(pixel_values).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        weights = 1 + (FACE_WEIGHT - 1) * masks
        error = ((decoded - pixel_values).square() * weights).sum() / (3 * weights.sum())
        return error + KL_WEIGHT * posterior.kl().mean() / noise[0].numel()


def psnr(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """[B] decibels between pictures in -1..1, over the pixels of weights [B,1,H,W]."""
    error = ((first - second).square() * weights).sum((1, 2, 3)) / (3 * weights.sum((1, 2, 3)))
    return 10 * torch.log10(4 / error)


@torch.no_grad()
def reconstruct(vae: Any, pixel_values: Tensor) -> Tensor:
    """Through the posterior's mean and back, in -1..1."""
    return vae.decode(vae.encode(pixel_values).latent_dist.mean).sample.clamp(-1, 1)


def score(vae: Any, pictures: Pictures) -> dict[str, float]:
    """Mean decibels over whole pictures and inside faces."""
    images = pictures.tensor() * 2 - 1
    masks = torch.from_numpy(pictures.masks)[:, None].float()
    decoded = torch.cat([reconstruct(vae, chunk) for chunk in images.split(32)])
    seen = masks.sum((1, 2, 3)) > 0
    whole, face = psnr(images, decoded, torch.ones_like(masks)), psnr(images[seen], decoded[seen], masks[seen])
    return {"psnr": float(whole.mean()), "face_psnr": float(face.mean())}


def pretrain() -> None:
    crops = Crops([load_pictures("pretrain", *canvas, count) for canvas, count in COUNTS.items()])
    held_out = load_pictures("tuning", 64, 64, 64)
    torch.manual_seed(STAGE.seed)

    def draw(generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        pixel_values, masks = crops.draw(generator)
        noise = torch.from_numpy(generator.standard_normal((BATCH, 4, CROP // 4, CROP // 4), np.float32))
        return pixel_values, masks, noise

    model = stage.run(STAGE, Autoencoder(), draw, Autoencoder.__call__, lambda model: score(model.vae, held_out))
    config = TINY_FOLDER / "vae" / "config.json"
    factor = round(1 / latent_std(model.vae, crops), 4)
    text = re.sub(r'("scaling_factor": )[0-9.]+', rf"\g<1>{factor}", config.read_text(encoding="utf-8"))
    save_weights(model.vae, TINY_WEIGHTS["vae"])
    write_atomic(config, lambda file: file.write_text(text, encoding="utf-8"))


@torch.no_grad()
def latent_std(vae: Any, crops: Crops) -> float:
    """Of all latent numbers over a thousand crops: its inverse is the scaling factor."""
    batches = [crops.draw(STAGE.generator(STAGE.num_steps + number))[0] for number in range(64)]
    return float(torch.cat([vae.encode(batch).latent_dist.mean for batch in batches]).std())
