"""PortraitBench's face recognisers: two small networks that know the drawn people of the embedded model's world.

A file of such weights says in its metadata for which world it was made, as the embedded model's own do.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import TINY_WEIGHTS
from .files import check_weights
from .identity import Recogniser
from .types import MagiCaptureError

FACE_SIZE = 48  # of the pictures that both see


class Residual(nn.Module):
    """Halves the grid: two convolutions beside a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride=2, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.GroupNorm(8, out_channels),
        )
        self.shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.convolutions(x) + self.shortcut(F.avg_pool2d(x, 2)))


def residual_trunk(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """A stem at full size and one Residual for each further width."""
    stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1), nn.GroupNorm(8, widths[0]), nn.SiLU())
    return nn.Sequential(stem, *(Residual(a, b) for a, b in pairwise(widths)))


class TrainingRecogniser(Recogniser):
    """The recogniser inside the identity loss: residual, group norms, smooth throughout. Faces [B,3,48,48] in -1..1,
    framed as face recognition frames them -> [B,64] of unit length."""

    input_size = FACE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.trunk = residual_trunk(3, (24, 48, 64, 80))
        self.squeeze = nn.Conv2d(80, 32, 1)
        self.head = nn.Linear(32 * 6 * 6, 64)

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.head(self.squeeze(self.trunk(faces)).flatten(1)), dim=1)


def separable(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A depthwise and a pointwise convolution, each with batch norm and PReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
        nn.Conv2d(channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.PReLU(out_channels),
    )


class JudgingRecogniser(Recogniser):
    """The recogniser that only judges (CSIM): depthwise separable, batch norms, another objective and other seeds, so
    that what pleases the one inside the loss does not please this one for the same reason. Same faces -> [B,96]."""

    input_size = FACE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.PReLU(32),
            separable(32, 64, 1),
            separable(64, 96, 2),
            separable(96, 96, 1),
            separable(96, 128, 2),
            separable(128, 128, 1),
            nn.Conv2d(128, 128, 6, groups=128, bias=False),  # a learned weight for each place instead of a mean
            nn.BatchNorm2d(128),
        )
        self.head = nn.Linear(128, 96)

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.head(self.trunk(faces).flatten(1)), dim=1)


def read_world(path: Path) -> str | None:
    """The version of the drawn world for which a file of weights was made; None where it names none."""
    from safetensors import safe_open

    if path.suffix.lower() != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("world")


def load_small_recogniser(weights: Mapping[str, Tensor], world: str, name: str) -> Recogniser:
    """A state dict of one of the two -> the network in fp32, frozen, in eval mode. name: the file's, for the message.

    Raises MagiCaptureError for another of PortraitBench's networks and for weights of another world than the embedded
    model's.
    """
    known = read_world(TINY_WEIGHTS["unet"])
    if world != known:
        raise MagiCaptureError(
            f"{name}: was trained for world {world}, and the embedded model is of world {known}; take the file that "
            "came with it"
        )
    net = TrainingRecogniser() if "squeeze.weight" in weights else JudgingRecogniser()
    check_weights(net.state_dict(), weights, name, "recogniser of PortraitBench")
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)
