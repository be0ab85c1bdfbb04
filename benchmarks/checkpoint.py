"""The random weights that every side of a run loads: written once, in diffusers' names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # the other defaults of the class are SD1.5's
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """A UNet of random weights, the same ones each time."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(UNet2DConditionModel(**config).state_dict(), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))


def read_weights(folder: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder) / WEIGHTS)


def read_unet(folder: str) -> Any:
    """diffusers' class, frozen, fp32 on the CPU, in memory of its own rather than in the file's pages."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**json.loads((Path(folder) / CONFIG).read_text()))
    unet.to_empty(device="cpu").load_state_dict(read_weights(folder))
    return unet.eval().requires_grad_(False)
