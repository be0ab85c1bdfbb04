"""Face parsing: which pixels are skin, eye, hair and so on. Optional: facexlib's BiSeNet with the user's weights.

The nineteen classes and their names are CelebAMask-HQ's. No network that everybody has knows hair: BlazeFace and
FaceMesh end at the hairline.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .faces import invert, warp
from .models import find_model, models_folder
from .types import MagiCaptureError

WEIGHTS = "parsing_bisenet.pth"
CLASSES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth",
    "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
FACE = CLASSES[1:14]  # the method's mask: skin, brows, eyes, glasses, ears, earring, nose, mouth and lips
EARS = ("l_ear", "r_ear", "ear_r")
SIZE = 512
BOX_SCALE = 2.0  # the network was trained on heads with hair; the box holds brows to chin
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def load_face_parser(folders: Sequence[Path] = ()) -> FaceParser:
    """BiSeNet with parsing_bisenet.pth out of `folders`; without any, where ComfyUI's other packs keep it.

    Raises MagiCaptureError in one line when facexlib or the weights are missing or do not fit.
    """
    home = models_folder()
    usual = [home.parent / "facedetection", home.parent / "facerestore_models", home]
    try:
        path = find_model(WEIGHTS, folders or usual)
        from facexlib.parsing.bisenet import BiSeNet  # pyright: ignore[reportMissingImports]
    except (MagiCaptureError, ImportError) as error:
        raise MagiCaptureError(
            f"{error}; skin and hair are found by facexlib (pip install facexlib) with {WEIGHTS} in "
            "models/facedetection; or take shape oval, without hair"
        ) from error
    net = BiSeNet(num_class=len(CLASSES))
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise MagiCaptureError(f"{path} does not hold the weights of facexlib's BiSeNet; fetch it again") from error
    return FaceParser(net)


class FaceParser:
    """Runs on the CPU, without gradients."""

    def __init__(self, net: Any) -> None:
        self.net = net.eval()

    @torch.no_grad()
    def __call__(self, image: Tensor, box: Tensor) -> Tensor:
        """image [3,H,W] 0..1, face box [4] in it -> [19,H,W]: each class's share of each pixel, 0 far from the box."""
        height, width = image.shape[1:]
        scale = SIZE / (float((box[2:] - box[:2]).max()) * BOX_SCALE)
        offset = SIZE / 2 - scale * (box[:2] + box[2:]) / 2
        matrix = torch.cat([torch.eye(2) * scale, offset[:, None]], 1)[None]
        crop = warp(image[None], matrix, SIZE, shrink=max(1, int(1 / scale)))
        logits = self.net((crop - MEAN[:, None, None]) / STD[:, None, None])[0]
        chosen = F.one_hot(logits.argmax(1), len(CLASSES)).movedim(-1, 1).float()
        return warp(chosen, invert(matrix), max(height, width), padding="zeros")[0, :, :height, :width]


def class_names(text: str) -> tuple[str, ...]:
    """`skin, hair` -> its names. Raises MagiCaptureError for a name that no class has, and when there is none."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in CLASSES]
    if unknown or not names:
        fault = f"{', '.join(unknown)} is none" if unknown else "no name in it"
        raise MagiCaptureError(f"classes: {fault}; write some of {', '.join(CLASSES)}, with commas between")
    return names
