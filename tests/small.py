"""Inputs that are as small as they can be: 64 px portraits of noise, and a configuration of six steps."""

from typing import Any

import torch

from magicapture_core.config import TrainConfig, parse_config
from magicapture_core.types import Portraits

SMALL: dict[str, Any] = {
    "resolution": 64,
    "inversion": {"num_steps": 3},
    "tuning": {"num_steps": 3},
    "loss": {"attention_downscale": 2},
}


def small_config(**changes: Any) -> TrainConfig:
    return parse_config({**SMALL, **changes})


def portraits(count: int, seed: int = 0) -> Portraits:
    """Noise with a square face in the left half, so that a mirrored mask differs."""
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 16:48, 8:40] = 1
    return Portraits(images=images, masks=masks)


def weights(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{i}.{name}": value.clone() for i, module in enumerate(modules) for name, value in module.state_dict().items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit-identical, key for key."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
