"""Pictures through the trained VAE, once: what the UNet learns from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from magicapture_core.backbone import TINY_WEIGHTS
from magicapture_core.files import write_atomic

from ..pictures import CACHE, Pictures


@dataclass(frozen=True, eq=False)
class Latents:
    """mean, std: [N,C,h,w] of the VAE's posterior, unscaled."""

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)


def load_latents(name: str, pictures: Pictures, vae: Any) -> Latents:
    """Of a set of pictures; kept on disk beside them, by the VAE's weights."""
    path = kept_file(name, pictures, ("vae",))
    if not path.exists():
        latents = encode(vae, pictures, name)
        write_atomic(path, lambda file: save_file(vars(latents), file))
    return Latents(**load_file(path))


def kept_file(name: str, pictures: Pictures, parts: tuple[str, ...]) -> Path:
    """What is kept of pictures that went through some of the tiny model's parts, by those parts' weights."""
    digest = hashlib.sha256(b"".join(TINY_WEIGHTS[part].read_bytes() for part in parts))
    return CACHE / f"latents-{digest.hexdigest()[:8]}" / f"{name}-{len(pictures)}.safetensors"


@torch.no_grad()
def encode(vae: Any, pictures: Pictures, name: str) -> Latents:
    mean, std = [], []
    for start in tqdm(range(0, len(pictures), 50), f"encoding {name}"):
        posterior = vae.encode(pictures[start : start + 50].tensor() * 2 - 1).latent_dist
        mean.append(posterior.mean)
        std.append(posterior.std)
    return Latents(torch.cat(mean).contiguous(), torch.cat(std).contiguous())
