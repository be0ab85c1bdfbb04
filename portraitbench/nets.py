"""The bench's own networks: a judge of style, a judge of faces, and the core's two small face recognisers.

All are small enough to be part of the project. A file of weights says for which world it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magicapture_core import backbone as backbones
from magicapture_core.backbone import TINY_WEIGHTS, Backbone
from magicapture_core.files import write_atomic
from magicapture_core.small_recognisers import JudgingRecogniser, TrainingRecogniser, read_world, residual_trunk
from magicapture_core.types import MagiCaptureError

from .labels import ATTRIBUTES, STYLE_WORDS
from .parameters import Identity
from .world import WORLD_VERSION

WEIGHTS = Path(__file__).parent / "weights"
NUM_TRAITS = len(fields(Identity))
SUMMARY = 96  # numbers in which a judge sums a picture up


class Summary(nn.Module):
    """What both judges have: pictures [B,C,64,64] to 96 numbers, of which linear heads read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = residual_trunk(channels, (24, 32, 48, 64))
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.linear = nn.Linear(64 * 4 * 4, SUMMARY)

    def forward(self, pictures: Tensor) -> Tensor:
        return F.silu(self.linear(self.pool(self.trunk(pictures)).flatten(1)))


class StyleJudge(nn.Module):
    """Reads hair, clothes and background of a picture whose face is hidden: `views.hide_face`'s [B,4,64,64]."""

    def __init__(self) -> None:
        super().__init__()
        self.summary = Summary(4)
        self.heads = nn.ModuleDict({name: nn.Linear(SUMMARY, len(words)) for name, words in STYLE_WORDS.items()})

    def features(self, windows: Tensor) -> Tensor:
        """[B,96], of which the cosine tells how alike two styles are."""
        return self.summary(windows)

    def forward(self, windows: Tensor) -> dict[str, Tensor]:
        """Scores [B,words] for each entry of STYLE_WORDS."""
        features = self.features(windows)
        return {name: head(features) for name, head in self.heads.items()}


class FaceJudge(nn.Module):
    """Reads what a face wears and the parameters it was drawn from: `views.head_crops`' [B,3,64,64]."""

    def __init__(self) -> None:
        super().__init__()
        self.summary = Summary(3)
        self.attributes = nn.Linear(SUMMARY, len(ATTRIBUTES))
        self.traits = nn.Linear(SUMMARY, NUM_TRAITS)

    def forward(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Attribute scores [B,6], positive = there; identity parameters [B,26] in 0..1."""
        summary = self.summary(heads)
        return self.attributes(summary), self.traits(summary).sigmoid()


NETS: dict[str, Callable[[], nn.Module]] = {
    "training_recogniser": TrainingRecogniser,
    "judging_recogniser": JudgingRecogniser,
    "style_judge": StyleJudge,
    "face_judge": FaceJudge,
}


def save_net(name: str, net: nn.Module) -> Path:
    """Its weights in half precision, marked with this world's version."""
    return save_weights(net, WEIGHTS / f"{name}.safetensors")


def load_net(name: str) -> nn.Module:
    """One of NETS with its weights, frozen, in eval mode. Raises MagiCaptureError when they are missing or were made
    for another version of the world."""
    path = WEIGHTS / f"{name}.safetensors"
    net = NETS[name]()
    net.load_state_dict(load_weights(path))
    return net.eval().requires_grad_(False)


def save_weights(net: nn.Module, path: Path) -> Path:
    """Floating-point weights as fp16, with the version of the world they belong to."""
    state = {
        name: value.detach().half().contiguous() if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    return write_atomic(path, lambda file: save_file(state, file, {"format": "pt", "world": str(WORLD_VERSION)}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """fp32. Raises MagiCaptureError as `load_net` does."""
    check_world(path)
    return {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}


def load_tiny() -> Backbone:
    """The embedded backbone. Raises MagiCaptureError as `load_net` does."""
    for path in TINY_WEIGHTS.values():
        check_world(path)
    return backbones.tiny()


def check_world(path: Path) -> None:
    """Raises MagiCaptureError when a file of weights is missing or was made for another version of the world."""
    if not path.exists():
        raise MagiCaptureError(f"{path.name} is missing: run `make pretrain`, which trains the bench's networks")
    if (made_for := read_world(path)) != str(WORLD_VERSION):
        raise MagiCaptureError(
            f"{path.parent.name}/{path.name} was trained for world {made_for}, and this is world {WORLD_VERSION}: "
            "run `make pretrain`"
        )
