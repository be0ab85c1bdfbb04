"""ControlNets of the user's for the collages of the clone phase, and the pictures that they read.

In: weights under diffusers' names or those of single files (LDM), framed photos with their faces. Out: a `Control` for
each mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ldm
from .dataset import Control, Mode
from .files import check_weights, read_state_dict
from .landmark_maps import Style, landmark_map, skeleton_map
from .types import MagiCaptureError, Photos, Portraits, side_of

if TYPE_CHECKING:
    from .faces import FaceDetector

FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")  # as diffusers saves
SINGLE_FILE = "control_model."  # before the names in single files, or nothing
MAX_CHANNELS, MAX_LEVELS = 1024, 8  # of the layers that read the picture: SD1.5's have 16 to 256, in four levels
REMEDY = "take a whole ControlNet for Stable Diffusion 1.5"

Draw = Callable[[Tensor, int], Tensor]  # FaceMesh's landmarks [468,2] and a side in pixels -> [3,side,side]


def controls_of(nets: Mapping[Mode, Any], style: Style, photos: Photos, detector: FaceDetector) -> dict[Mode, Control]:
    """Each net with the people's faces as it wants them drawn. style: of landmarks.

    Raises MagiCaptureError where a person has photos whose faces nobody has found.
    """
    draw: dict[Mode, Draw] = {"skeleton": skeleton_map, "landmark": partial(landmark_map, style=style)}
    people = {name: portraits for name, portraits in photos.items() if side_of(name) == "subject"}
    for name, portraits in people.items():
        if len(portraits.faces) != len(portraits):
            raise MagiCaptureError(
                f"{name}: a ControlNet needs the face of every photo, and {len(portraits.faces)} of {len(portraits)} "
                "are known; give photos whose faces are found (FACES of Face Mask), or leave the ControlNet out"
            )
    return {
        mode: Control(net=net, pictures={name: drawn(people[name], draw[mode], detector) for name in people})
        for mode, net in nets.items()
    }


def drawn(portraits: Portraits, draw: Draw, detector: FaceDetector) -> Tensor:
    """[N,3,S,S] in 0..1: each photo's face, on black."""
    pairs = zip(portraits.images, portraits.faces, strict=True)
    return torch.stack([draw(detector.mesh(image, face), portraits.images.shape[-1]) for image, face in pairs])


def load_controlnet(path: Path, unet: Any) -> Any:
    """`controlnet` of a diffusers folder or of one file, of which tensors alone are read.

    Raises MagiCaptureError for a file that is none, or is for another model.
    """
    candidates = [path / name for name in FOLDER_FILES] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise MagiCaptureError(f"{path}: no ControlNet is there; give its file, or a folder with {FOLDER_FILES[0]}")
    return controlnet(str(path), read_state_dict(file), unet)


def controlnet(name: str, weights: Mapping[str, Tensor], unet: Any) -> Any:
    """diffusers' ControlNetModel for this UNet, out of weights under either kind of names. name: for messages.

    Raises MagiCaptureError for weights that are no ControlNet for this UNet.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    if "difference" in weights:
        raise MagiCaptureError(f"{name}: holds the difference to another model; {REMEDY}")
    single = {key.removeprefix(SINGLE_FILE): value for key, value in weights.items() if key.startswith(SINGLE_FILE)}
    weights = single or weights
    if "zero_convs.0.0.weight" in weights:
        try:
            weights = ldm.controlnet_names(weights, unet.config)
        except MagiCaptureError as error:
            raise MagiCaptureError(f"{name}: {error}") from error
        except Exception as error:  # diffusers' converter has many kinds for layers that are not where they should be
            raise MagiCaptureError(f"{name}: not a ControlNet ({type(error).__name__}); {REMEDY}") from error
    if "controlnet_cond_embedding.conv_in.weight" not in weights:
        raise MagiCaptureError(f"{name}: not a ControlNet; {REMEDY}")
    reads = [weights["controlnet_cond_embedding.conv_in.weight"]]
    while (block := f"controlnet_cond_embedding.blocks.{2 * len(reads) - 1}.weight") in weights:
        reads.append(weights[block])
    if max(map(_rows, reads)) > MAX_CHANNELS or len(reads) > MAX_LEVELS:
        raise MagiCaptureError(f"{name}: reads its pictures with too many channels; {REMEDY}")
    net = ControlNetModel.from_unet(
        unet, load_weights_from_unet=False, conditioning_embedding_out_channels=tuple(map(_rows, reads))
    )
    check_weights(net.state_dict(), weights, name, "ControlNet for this model")
    net.load_state_dict(weights)
    return net


def _rows(weight: Tensor) -> int:
    """1 for a single number, which check_weights then names."""
    return next(iter(weight.shape), 1)
