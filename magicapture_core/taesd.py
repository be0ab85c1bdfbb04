"""TAESD, where the user has it: a tiny decoder of SD1.5's latents, for the identity loss.

In: its weights, which ComfyUI's previews use too. Out: diffusers' class of it, which stands in for the VAE: it decodes
to -1..1 as that does, and takes latents as the UNet has them, so that its scaling factor is 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .files import check_weights, read_state_dict
from .types import MagiCaptureError

FILES = ("taesd_decoder.safetensors", "taesd_decoder.pth")


def load_taesd(path: Path) -> Any:
    """taesd_decoder.safetensors or .pth -> diffusers' AutoencoderTiny on the CPU in fp32, without its encoder.

    Raises MagiCaptureError for a missing or broken file and for another kind of network.
    """
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    if not path.is_file():
        raise MagiCaptureError(f"{path}: there is no such file")
    weights = {_diffusers_name(key): value.float() for key, value in read_state_dict(path).items()}
    with torch.device("meta"):
        net: Any = AutoencoderTiny()
    del net.encoder
    check_weights(net.decoder.state_dict(), weights, path.name, "TAESD decoder of SD1.5")
    net.decoder.load_state_dict(weights, assign=True)
    return net.eval().requires_grad_(False)


def _diffusers_name(key: str) -> str:
    """3.conv.0.weight -> layers.2.conv.0.weight: in the file the clamp is layer 0, in diffusers it is none."""
    layer, _, rest = key.partition(".")
    return f"layers.{int(layer) - 1}.{rest}" if layer.isdecimal() and len(layer) < 4 else key
