"""Thousands of invented people, several pictures of each, as they are and through the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from magicapture_core.files import write_atomic

from .. import world
from ..parameters import Attributes, Nuisance, Style
from ..pictures import Pictures, painted, to_uint8
from ..portrait import Subject
from ..world import Picture, Scene, Split
from .latents import Latents, latents_file, load_latents

PHOTOS = 8  # of each person


@dataclass(frozen=True, eq=False)
class People:
    """Pictures of people 0..P-1, PHOTOS of each in a row; `rebuilt` are the same after the VAE.

    images, rebuilt: [P * PHOTOS,64,64,3] uint8. landmarks: [P * PHOTOS,5,2].
    """

    images: np.ndarray
    rebuilt: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.images) // PHOTOS


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


def load_people(split: Split, count: int, vae: Any) -> People:
    name = f"{split}-people"
    pictures = painted(name, count * PHOTOS, partial(paint_person, split))
    return People(pictures.images, rebuild(pictures, name, vae), pictures.landmarks[:, 0])


def rebuild(pictures: Pictures, name: str, vae: Any) -> np.ndarray:
    """The pictures decoded from their latents, [N,H,W,3] uint8; kept on disk beside those."""
    path = latents_file(name, pictures).with_suffix(".npy")
    if not path.exists():
        write_atomic(path, lambda file: np.save(file, decode(load_latents(name, pictures, vae), name, vae)))
    return np.load(path)


@torch.no_grad()
def decode(latents: Latents, name: str, vae: Any) -> np.ndarray:
    chunks = tqdm(latents.mean.split(50), f"decoding {name}")
    return np.concatenate([to_uint8(vae.decode(chunk).sample / 2 + 0.5) for chunk in chunks])
