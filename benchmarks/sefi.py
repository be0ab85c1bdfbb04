"""SeFi-IDE's own optimizer step, and as its measure Textual Inversion's: one word, at all noise levels, for keys and
values alike, without the attention loss. Both as the trainer makes them, text encoder and all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from magicapture_core import __version__
from magicapture_core.ldm import SCALING_FACTOR
from magicapture_core.sefi.config import SefiConfig, parse_sefi_config
from magicapture_core.sefi.objective import EncodedPhotos
from magicapture_core.sefi.trainer import PHASE, open_run

from .checkpoint import read_unet
from .ours import random_backbone
from .workload import DTYPES, MAX_GRAD_NORM, Conditions, Contender, Method, Workload

SETTINGS: dict[Method, dict[str, Any]] = {
    "sefi": {},
    "textual-inversion": {"num_stages": 1, "key_value_split": False, "attention_weight": 0.0, "parts": "vectors"},
}


@contextmanager
def opened(workload: Workload, conditions: Conditions) -> Iterator[Contender]:
    backbone = random_backbone(read_unet(conditions.checkpoint), workload)
    backbone.to(torch.device(conditions.device), DTYPES[workload.dtype])
    with open_run(backbone, random_photo(workload), settings(workload)) as run:
        run.begin(PHASE, {}, midway=False)
        steps = itertools.count()
        yield Contender(
            step=lambda: run.update(PHASE, next(steps), fraction_left=1.0),
            predict=lambda latents, timesteps, embeds: backbone.unet(latents, timesteps, embeds).sample,
            num_parameters=sum(parameter.numel() for parameter in run.trainable()),
            about=f"MagiCapture {__version__}, {workload.method}",
        )


def settings(workload: Workload) -> SefiConfig:
    return parse_sefi_config(
        {
            **SETTINGS[workload.method],
            "resolution": workload.pixels,
            "accumulate": workload.batch,
            "batch_size": workload.batch,
            "dtype": workload.dtype,
            "gradient_checkpointing": workload.checkpointing,
            "max_grad_norm": MAX_GRAD_NORM,
        }
    )


def random_photo(workload: Workload) -> EncodedPhotos:
    side = workload.latent_shape[-1]
    mean = torch.randn(1, 1, 4, side, side).repeat(2, 1, 1, 1, 1)
    return EncodedPhotos(mean=mean, std=torch.full_like(mean, 0.1), scaling_factor=SCALING_FACTOR)
