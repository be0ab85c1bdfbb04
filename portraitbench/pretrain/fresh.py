"""Untrained models of the embedded default's shapes, initialised as their libraries do."""

from __future__ import annotations

import json
from typing import Any

from magicapture_core.backbone import TINY_FOLDER


def read_config(part: str) -> dict[str, Any]:
    return json.loads((TINY_FOLDER / part / "config.json").read_text(encoding="utf-8"))


def make_vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**read_config("vae"))


def make_unet() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**read_config("unet"))


def make_text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**read_config("text_encoder")))
