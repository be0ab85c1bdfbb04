"""A ControlNet of the user's for the collages of the clone phase, and the pictures that it reads.

In: weights as diffusers names them, framed photos with their faces. Out: a `Control`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .dataset import Control
from .landmark_maps import Style, landmark_map
from .types import MagiCaptureError, Photos, Portraits, side_of

if TYPE_CHECKING:
    from .faces import FaceDetector


def landmark_control(path: Path, style: Style, unet: Any, photos: Photos, detector: FaceDetector) -> Control:
    """The net of this file, and the people's faces as it wants them drawn. Raises as `load_controlnet`."""
    people = {name: portraits for name, portraits in photos.items() if side_of(name) == "subject"}
    pictures = {name: landmark_pictures(portraits, style, detector) for name, portraits in people.items()}
    return Control(net=load_controlnet(path, unet), pictures=pictures)


def landmark_pictures(portraits: Portraits, style: Style, detector: FaceDetector) -> Tensor:
    """[N,3,S,S] in 0..1: each photo's face as landmarks, on black."""
    pairs = zip(portraits.images, portraits.faces, strict=True)
    return torch.stack(
        [landmark_map(detector.mesh(image, face), portraits.images.shape[-1], style) for image, face in pairs]
    )


def load_controlnet(path: Path, unet: Any) -> Any:
    """diffusers' ControlNetModel for this UNet, with the weights of a .safetensors file.

    Raises MagiCaptureError for a file that is none, or is for another model.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
        reads = [weights["controlnet_cond_embedding.conv_in.weight"]]
        while (block := f"controlnet_cond_embedding.blocks.{2 * len(reads) - 1}.weight") in weights:
            reads.append(weights[block])
        net = ControlNetModel.from_unet(
            unet, load_weights_from_unet=False, conditioning_embedding_out_channels=tuple(len(read) for read in reads)
        )
        net.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise MagiCaptureError(
            f"{path}: not a ControlNet for this model ({str(error).splitlines()[0]}); give diffusers' "
            "diffusion_pytorch_model.safetensors of one"
        ) from error
    return net
