"""What is measured, as plain values: the nouns that the command and its processes hand each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Method = Literal["ours", "sefi", "textual-inversion", "diffusers", "kohya", "comfyui"]
OURS: tuple[Method, ...] = ("ours", "sefi", "textual-inversion")  # the rest is peers
Dtype = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RANK, LEARNING_RATE, MAX_GRAD_NORM = 4, 1e-4, 1.0
NUM_PARAMETERS = 797_184  # of W0: rank 4 on q, k, v and out of all 32 attention layers of SD1.5
PIXELS_PER_LATENT, PROMPT_SHAPE = 8, (77, 768)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One side of a row. features: what ours does beyond W0, keys of `ours.FEATURES`."""

    method: Method = "ours"
    pixels: int
    batch: int = 1
    dtype: Dtype = "fp32"
    checkpointing: bool = False
    features: tuple[str, ...] = ()

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        side = self.pixels // PIXELS_PER_LATENT
        return self.batch, 4, side, side


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all sides of a run share. checkpoint: folder of the UNet's random weights. trees: where peers are."""

    checkpoint: str
    device: str = "cpu"
    threads: int = 1
    trees: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """A trainer that is ready to go. step: one optimizer step. about: what it is, with its version.

    predict: the UNet's noise prediction before the first step, of noisy latents [B,4,h,w], timesteps [B] and prompt
    embeddings [B,77,768]. num_parameters: how many numbers learn, None where that shows only once it trains.
    """

    step: Callable[[], Any]
    predict: Callable[[Tensor, Tensor, Tensor], Tensor]
    num_parameters: int | None
    about: str
