"""The LoRA names that every tool of Stable Diffusion 1.x reads (kohya's), and back.

`down_blocks.0.attentions.0.proj` <-> `lora_unet_down_blocks_0_attentions_0_proj` with `.lora_down.weight`,
`.lora_up.weight` and a 0-dim `.alpha`. Dots and underscores become one, so the way back needs the model's own names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .types import LoraLayer, MagiCaptureError

UNET, TEXT_ENCODER = "lora_unet", "lora_te"
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def kohya_name(prefix: str, path: str) -> str:
    """The text encoder's names keep the level `text_model` that transformers has done away with in 5.6."""
    if prefix == TEXT_ENCODER:
        path = "text_model." + path.removeprefix("text_model.")
    return f"{prefix}_{path}".replace(".", "_")


def to_kohya(prefix: str, layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """Module path -> update, as fp16 tensors on the CPU. `.alpha` is the true alpha: scale = alpha / rank."""
    return write_layers({kohya_name(prefix, path): layer for path, layer in layers.items()})


def from_kohya(state: Mapping[str, Tensor], prefix: str, model: nn.Module) -> dict[str, LoraLayer]:
    """The layers of one prefix by the model's module paths, in fp32.

    Raises MagiCaptureError for a layer that the model lacks or that has another size there.
    """
    linear = {kohya_name(prefix, path): path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers: dict[str, LoraLayer] = {}
    for name, layer in read_layers(state).items():
        if not name.startswith(prefix + "_"):
            continue
        if name not in linear:
            raise MagiCaptureError(
                f"the LoRA has a layer {name} that this model lacks: it is for another kind of model"
            )
        path = linear[name]
        size = (layer.up.shape[0], layer.down.shape[1])
        wanted = tuple(model.get_parameter(f"{path}.weight").shape)
        if size != wanted:
            raise MagiCaptureError(
                f"the LoRA's layer {name} is for a weight of {size}, here it is {wanted}: it is for another model"
            )
        layers[path] = layer
    return layers


def write_layers(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """Kohya name -> update, as fp16 tensors on the CPU; the inverse of `read_layers`."""
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        parts = {DOWN: layer.down, UP: layer.up, ALPHA: torch.tensor(layer.alpha)}
        state |= {
            f"{name}.{part}": value.detach().to("cpu", torch.float16).contiguous() for part, value in parts.items()
        }
    return state


def read_layers(state: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Kohya name -> update in fp32. Without an alpha the scale is 1, as in every tool.

    Raises MagiCaptureError for whatever is no whole, linear LoRA layer.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, part = key.partition(".")
        if not name.startswith((f"{UNET}_", f"{TEXT_ENCODER}_")) or part not in (DOWN, UP, ALPHA):
            raise MagiCaptureError(f"{key} belongs to no LoRA of this kind")
        parts.setdefault(name, {})[part] = value.float()
    return {name: _read_layer(name, layer) for name, layer in parts.items()}


def _read_layer(name: str, parts: Mapping[str, Tensor]) -> LoraLayer:
    if DOWN not in parts or UP not in parts:
        raise MagiCaptureError(f"the LoRA's layer {name} is not whole: {DOWN if UP in parts else UP} is missing")
    down, up = parts[DOWN], parts[UP]
    alpha = parts.get(ALPHA, torch.tensor(float(len(down))))
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.numel() or alpha.numel() != 1:
        shapes = {part: tuple(value.shape) for part, value in parts.items()}
        raise MagiCaptureError(f"the LoRA's layer {name} has impossible shapes {shapes}")
    return LoraLayer(down=down, up=up, alpha=float(alpha))
