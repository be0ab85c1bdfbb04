"""Thousands of invented people, several pictures of each, as they are and through the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm, trange

from magicapture_core.backbone import Backbone
from magicapture_core.diffusion import add_noise, predict_x0
from magicapture_core.files import write_atomic
from magicapture_core.sampler import encode_prompt
from magicapture_core.tokens import Vocabulary

from .. import world
from ..parameters import Attributes, Nuisance, Style
from ..pictures import Pictures, painted, to_uint8
from ..portrait import Subject
from ..world import Picture, Scene, Split
from .latents import kept_file, load_latents

PHOTOS = 8  # of each person
PREDICTED_BELOW = 800  # as the paper's T'


@dataclass(frozen=True, eq=False)
class People:
    """Pictures of people 0..P-1, PHOTOS of each in a row. landmarks: [P * PHOTOS,5,2].

    views: the same pictures three ways, [P * PHOTOS,64,64,3] uint8 each: `pictures` as they are, `rebuilt` after the
    VAE, `predicted` as one pass of the UNet sees them through noise, which is what an identity loss looks at.
    """

    views: dict[str, np.ndarray]
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.landmarks) // PHOTOS


def paint_person(split: Split, index: int) -> Picture:
    """Picture `index` of a split's people: other hair, clothes, attributes, light and distance in each."""
    person, photo = divmod(index, PHOTOS)
    rng = world.random(split, "people", person, photo)
    how = Style.draw(rng)
    subject = Subject(
        identity=world.identity(split, person),
        look=how.look,
        attributes=Attributes.draw(rng),
        nuisance=Nuisance.draw(rng),
    )
    return world.render(Scene(height=64, width=64, setting=how.setting, subjects=(subject,)))


def load_people(split: Split, count: int, backbone: Backbone) -> People:
    name = f"{split}-people"
    pictures = painted(name, count * PHOTOS, partial(paint_person, split))
    views = {
        "pictures": pictures.images,
        "rebuilt": rebuild(pictures, name, backbone.vae),
        "predicted": predict(pictures, name, backbone),
    }
    return People(views, pictures.landmarks[:, 0])


def rebuild(pictures: Pictures, name: str, vae: Any) -> np.ndarray:
    """The pictures decoded from their latents, [N,H,W,3] uint8; kept on disk beside those."""
    path = kept_file(name, pictures, ("vae",)).with_suffix(".npy")
    if not path.exists():
        latents = load_latents(name, pictures, vae).mean
        write_atomic(path, lambda file: np.save(file, decode(latents, f"decoding {name}", vae)))
    return np.load(path)


def predict(pictures: Pictures, name: str, backbone: Backbone) -> np.ndarray:
    """What one pass of the UNet makes of the pictures, noised to a random t < PREDICTED_BELOW, under their captions:
    [N,H,W,3] uint8; kept on disk."""
    path = kept_file(name, pictures, ("vae", "text_encoder", "unet")).with_suffix(".npy")
    if not path.exists():
        latents = denoise(pictures, load_latents(name, pictures, backbone.vae).mean, backbone)
        write_atomic(path, lambda file: np.save(file, decode(latents, f"decoding predictions of {name}", backbone.vae)))
    return np.load(path)


@torch.no_grad()
def denoise(pictures: Pictures, latents: Tensor, backbone: Backbone) -> Tensor:
    """latents [N,C,h,w], unscaled -> one pass' x0 of each, unscaled."""
    vocabulary, generator = Vocabulary(backbone.tokenizer, {}), torch.Generator().manual_seed(0)
    alphas_cumprod, factor = backbone.noise_scheduler.alphas_cumprod, backbone.vae.config.scaling_factor
    predicted = []
    for start in trange(0, len(latents), 50, desc="predicting"):
        clean = latents[start : start + 50] * factor
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(PREDICTED_BELOW, (len(clean),), generator=generator)
        noisy = add_noise(clean, noise, timesteps, alphas_cumprod)
        captions = pictures.captions[start : start + 50].tolist()
        noise_pred = backbone.unet(noisy, timesteps, encode_prompt(backbone, vocabulary.encode(captions))).sample
        predicted.append(predict_x0(noisy, noise_pred, timesteps, alphas_cumprod) / factor)
    return torch.cat(predicted)


@torch.no_grad()
def decode(latents: Tensor, title: str, vae: Any) -> np.ndarray:
    return np.concatenate([to_uint8(vae.decode(chunk).sample / 2 + 0.5) for chunk in tqdm(latents.split(50), title)])
