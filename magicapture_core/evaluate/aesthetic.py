"""LAION's improved aesthetic predictor: how pleasing people would find a picture, 1..10, from its CLIP embedding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from ..files import check_weights, read_state_dict
from ..types import MagiCaptureError

FILE = "sac+logos+ava1-l14-linearMSE.pth"
HIDDEN = (1024, 128, 64, 16)


class AestheticPredictor(nn.Module):
    """Five linear layers with nothing between them, under the names of the published weights.

    embeds [N,D] of unit length, of the CLIP that it was trained on -> [N].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, *HIDDEN, 1)
        first, second, third, fourth, last = (nn.Linear(*pair) for pair in pairwise(sizes))
        gap = nn.Identity  # where the training dropped some out
        self.layers = nn.Sequential(first, gap(), second, gap(), third, gap(), fourth, last)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.layers(embeds)[:, 0]


def load_aesthetic(path: Path, width: int) -> AestheticPredictor:
    """The predictor's weights (.pth, .safetensors) -> the network on the CPU in fp32. width: of the embeddings.

    Raises MagiCaptureError for a missing or broken file, another kind of network, and one of another CLIP.
    """
    if not path.is_file():
        raise MagiCaptureError(f"{path}: there is no such file")
    weights = {key: value.float() for key, value in read_state_dict(path).items()}
    first = weights.get("layers.0.weight")
    if first is None or first.ndim != 2:
        raise MagiCaptureError(f"{path.name}: no aesthetic predictor; take {FILE}")
    if first.shape[1] != width:
        raise MagiCaptureError(
            f"{path.name}: judges CLIP embeddings of {first.shape[1]} numbers, and those of --clip have {width}; take "
            "the CLIP that it was trained on, OpenAI's ViT-L/14 for LAION's"
        )
    predictor = AestheticPredictor(width)
    check_weights(predictor.state_dict(), weights, path.name, f"aesthetic predictor such as {FILE}")
    predictor.load_state_dict(weights)
    return predictor.eval().requires_grad_(False)
