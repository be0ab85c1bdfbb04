"""DINO's vision transformer: what an object looks like, patch by patch and as a whole.

In: images. Out: the keys of the last attention and the CLS token, with gradient to the images. The weights are a file
of the user's, under the names of the release (https://github.com/facebookresearch/dino, which are timm's) or of
transformers' ViTModel. The network is written out here: where ViTModel has its keys differs from version to version.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .files import check_weights, read_state_dict
from .types import MagiCaptureError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
HEAD_WIDTH, MLP_RATIO, EPSILON = 64, 4, 1e-6  # of all that were released
MAX_DEPTH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
RENAMES = (  # transformers -> the release, one after the other
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.", "blocks."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.attention.", ".attn."),
    (".attention.output.dense.", ".attn.proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    ("layernorm.", "norm."),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class DinoFeatures:
    """keys: [B,N,D] of N patches row by row, all heads of the last attention side by side. cls: [B,D], normalised."""

    keys: Tensor
    cls: Tensor


class Attention(nn.Module):
    """x [B,1+N,D] -> what attention makes of it, and its keys, [B,1+N,D] both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in parts)
        output = F.scaled_dot_product_attention(query, key, value)
        return self.proj(output.transpose(1, 2).flatten(2)), parts[1]


class Block(nn.Module):
    """Attention, then two layers for each position, both beside a shortcut. Returns the keys too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        fc1, fc2 = nn.Linear(width, width * MLP_RATIO), nn.Linear(width * MLP_RATIO, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, keys = self.attn(self.norm1(x))
        x = x + attended
        return x + self.mlp(self.norm2(x)), keys


class Dino(nn.Module):
    """images [B,3,H,W] in 0..1 -> DinoFeatures of N = HW / patch_size^2 patches.

    Made for squares of input_size (224 for all that were released); for other sizes the position embeddings are
    interpolated. Raises MagiCaptureError where a side is not a multiple of patch_size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, depth: int, patch_size: int, grid_size: int) -> None:
        super().__init__()
        self.patch_size, self.grid_size = patch_size, grid_size
        self.input_size = patch_size * grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid_size**2, width))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, patch_size, patch_size)))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> DinoFeatures:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise MagiCaptureError(
                f"DINO: a picture of {width} x {height} does not divide into patches of {self.patch_size}; resize it "
                f"to {self.input_size} x {self.input_size}"
            )
        patches = self.patch_embed((images - self.mean) / self.std)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x, keys = tokens + self._positions(patches.shape[-2], patches.shape[-1]), tokens
        for block in self.blocks:
            x, keys = block(x)
        return DinoFeatures(keys=keys[:, 1:], cls=self.norm(x[:, 0]))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """[1,1+rows*columns,D]. Left as they are for the size of the training."""
        if (rows, columns) == (self.grid_size, self.grid_size):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def load_dino(path: Path) -> Dino:
    """A file of weights -> the network on the CPU in fp32, frozen, in eval mode. Nothing in the file is run.

    dino_deitsmall16_pretrain.pth and its like, or model.safetensors and pytorch_model.bin of facebook/dino-vits16 and
    its like. Raises MagiCaptureError for a missing or broken file and for another kind of network.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise MagiCaptureError(f"{path.name}: DINO's weights end in .pth, .pt, .bin or .safetensors; choose another")
    if not path.is_file():
        raise MagiCaptureError(f"{path}: there is no such file")
    weights = _released_names(read_state_dict(path), path.name)
    with torch.device("meta"):
        net = Dino(*_sizes(weights, path.name))
    floats = {key: value.float() for key, value in weights.items() if value.is_floating_point()}
    check_weights(net.state_dict(), floats, path.name, "ViT of DINO")
    net.load_state_dict(floats, assign=True)
    return net.eval().requires_grad_(False)


def _released_names(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of transformers become the release's, which stay as they are; query, key and value become one matrix."""
    renamed = {}
    for key, value in weights.items():
        key = key.removeprefix("vit.")
        for theirs, ours in RENAMES:
            key = key.replace(theirs, ours)
        renamed[key] = value
    separate = [key for key in renamed if ".attn.query." in key]
    joined = {key.replace("query", "qkv"): _join(renamed, key, name) for key in separate}
    # DINO has no pooler: where a file has one, its weights were drawn when ViTModel was made.
    unused = (".attn.query.", ".attn.key.", ".attn.value.", "pooler.")
    return joined | {key: value for key, value in renamed.items() if not any(part in key for part in unused)}


def _join(weights: Mapping[str, Tensor], query: str, name: str) -> Tensor:
    try:
        return torch.cat([weights[query.replace("query", part)] for part in ("query", "key", "value")])
    except (KeyError, RuntimeError):
        place = query.replace("query", "query, key and value")
        raise MagiCaptureError(f"{name}: {place} do not fit together: damaged; fetch it again") from None


def _sizes(weights: Mapping[str, Tensor], name: str) -> tuple[int, int, int, int]:
    """Width, depth, patch size, and the side of the grid of patches, all four as the shapes tell them."""
    try:
        width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
        grid_size = isqrt(weights["pos_embed"].shape[1] - 1)
    except (KeyError, IndexError, ValueError):
        width = patch_size = grid_size = 0
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    if width % HEAD_WIDTH or depth > MAX_DEPTH or not all((width, depth, patch_size, grid_size)):
        raise MagiCaptureError(
            f"{name}: no vision transformer with heads of {HEAD_WIDTH} that is known here; take "
            "dino_deitsmall16_pretrain.pth, or model.safetensors of facebook/dino-vits16"
        )
    return width, depth, patch_size, grid_size
