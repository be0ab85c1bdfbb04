"""IResNet, the network of ArcFace, under the names that arcface_torch gives its weights.

https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch. A residual network whose blocks begin
and end with a batch norm; a fully connected layer reads the last grid of 7x7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .files import check_weights
from .identity import ARCFACE_SIZE, Recogniser
from .types import MagiCaptureError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}  # depth -> blocks of each stage
WIDTH, NUM_FEATURES = 64, 512  # of all that are shared
GRID = ARCFACE_SIZE // 16


class Block(nn.Module):
    """Two convolutions beside a shortcut; the second one has the stride."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Identity()
        if stride > 1:
            shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(inner)) + self.downsample(x)


def _stage(channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
    """Halves the grid in its first block."""
    rest = (Block(out_channels, out_channels, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(Block(channels, out_channels, 2), *rest)


class IResNet(Recogniser):
    """[B,3,112,112] in -1..1 -> [B,D] of unit length, D = num_features. blocks: how many each stage has."""

    input_size = ARCFACE_SIZE

    def __init__(self, blocks: Sequence[int], width: int = WIDTH, num_features: int = NUM_FEATURES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.layer1 = _stage(width, width, blocks[0])
        self.layer2 = _stage(width, width * 2, blocks[1])
        self.layer3 = _stage(width * 2, width * 4, blocks[2])
        self.layer4 = _stage(width * 4, width * 8, blocks[3])
        self.bn2 = nn.BatchNorm2d(width * 8)
        self.fc = nn.Linear(width * 8 * GRID**2, num_features)
        self.features = nn.BatchNorm1d(num_features)

    def forward(self, faces: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(faces)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.normalize(self.features(self.fc(self.bn2(x).flatten(1))), dim=1)


def load_iresnet(weights: Mapping[str, Tensor], name: str) -> IResNet:
    """A state dict of arcface_torch -> the network in fp32, frozen, in eval mode. name: the file's, for the message.

    Depth and width are those of the weights. Raises MagiCaptureError when the depth is unknown or a weight is wrong.
    """
    blocks = tuple(_num_blocks(weights, stage) for stage in range(1, 5))
    if blocks not in BLOCKS.values():
        depths = ", ".join(map(str, BLOCKS))
        raise MagiCaptureError(
            f"{name}: stages of {blocks} blocks are not those of IResNet {depths}; take a backbone of arcface_torch of "
            "one of these depths"
        )
    width = _num_rows(weights, "conv1.weight", WIDTH)
    with torch.device("meta"):
        net = IResNet(blocks, width, _num_rows(weights, "fc.weight", NUM_FEATURES))
    floats = {key: value.float() for key, value in weights.items() if value.is_floating_point()}
    wanted = {key: value for key, value in net.state_dict().items() if value.is_floating_point()}
    check_weights(wanted, floats, name, "backbone of arcface_torch")
    # How many steps the training had decides nothing, and not every file says it.
    counters = {key: torch.zeros((), dtype=torch.int64) for key in net.state_dict().keys() - wanted.keys()}
    net.load_state_dict({**floats, **counters}, assign=True)
    return net.eval().requires_grad_(False)


def _num_blocks(weights: Mapping[str, Tensor], stage: int) -> int:
    return len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")})


def _num_rows(weights: Mapping[str, Tensor], key: str, usual: int) -> int:
    """`usual` where the weight is missing or a single number; check_weights says so."""
    return next(iter(weights[key].shape), usual) if key in weights else usual
