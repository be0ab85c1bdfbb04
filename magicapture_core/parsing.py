"""Face parsing: which pixels are skin, brow, eye, nose, mouth. Optional: facexlib's BiSeNet with the user's weights.

The classes are CelebAMask-HQ's: 1-13 are skin, brows, eyes, glasses, ears, earring, nose, mouth and lips.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .faces import invert, warp
from .models import find_model, models_folder
from .types import MagiCaptureError

WEIGHTS = "parsing_bisenet.pth"
FACE_CLASSES = range(1, 14)
NUM_CLASSES = 19
SIZE = 512
BOX_SCALE = 2.0  # the network was trained on heads with hair; the box holds brows to chin
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def load_face_parser(folders: Sequence[Path] = ()) -> FaceParser:
    """BiSeNet with parsing_bisenet.pth out of `folders`, or where ComfyUI's other packs keep it.

    Raises MagiCaptureError in one line when facexlib or the weights are missing or do not fit.
    """
    home = models_folder()
    path = find_model(WEIGHTS, [*folders, home.parent / "facedetection", home.parent / "facerestore_models", home])
    try:
        from facexlib.parsing.bisenet import BiSeNet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MagiCaptureError(
            f"shape 'parsed' needs facexlib ({error}): pip install facexlib, or take 'oval'"
        ) from error
    net = BiSeNet(num_class=NUM_CLASSES)
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
        """image [3,H,W] 0..1, face box [4] in it -> mask [1,H,W], 1 on the face, 0 elsewhere and far from the box."""
        height, width = image.shape[1:]
        scale = SIZE / (float((box[2:] - box[:2]).max()) * BOX_SCALE)
        offset = SIZE / 2 - scale * (box[:2] + box[2:]) / 2
        matrix = torch.cat([torch.eye(2) * scale, offset[:, None]], 1)[None]
        crop = warp(image[None], matrix, SIZE, shrink=max(1, int(1 / scale)))
        logits = self.net((crop - MEAN[:, None, None]) / STD[:, None, None])[0]
        classes = logits.argmax(1, keepdim=True)
        mask = ((classes >= FACE_CLASSES.start) & (classes < FACE_CLASSES.stop)).float()
        return warp(mask, invert(matrix), max(height, width), padding="zeros")[0, :, :height, :width]
