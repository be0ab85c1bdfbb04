"""Split adapters, after the training: people and styles in one file, each side with its own part of the rank.

In: artifacts. Out: artifacts, with a part scaled, taken out, or joined with that of another run. A sum of two low-rank
updates is one of the sum of their ranks, up = [up_1 up_2], down = [down_1; down_2]: so nothing is lost on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import get_args

import torch

from .artifact import Artifact
from .kohya import UP, read_layers, write_layers
from .metadata import check_tokens
from .types import LoraLayer, MagiCaptureError, Side, side_of

MAX_RANK = 1024  # of one file; whatever another lacks is filled up with zeros of this rank


def scaled(artifact: Artifact, strengths: Mapping[Side, float]) -> Artifact:
    """The artifact with each half `strength` times as strong; the same one where all are 1.

    Raises MagiCaptureError for joint adapters, whose person and style cannot be told apart.
    """
    if all(strength == 1 for strength in strengths.values()):
        return artifact
    factors = torch.cat([torch.full((rank,), strengths[side]) for side, rank in _ranks(artifact).items()])
    return replace(
        artifact,
        lora={
            key: (value.float() * factors).half() if key.endswith(UP) else value for key, value in artifact.lora.items()
        },
    )


def extract(artifact: Artifact, side: Side, name: str) -> Artifact:
    """One side alone: its words and its half of the LoRA. Raises MagiCaptureError when the file does not hold it."""
    ranks = _ranks(artifact)
    if side not in ranks:
        raise MagiCaptureError(f"{artifact.name} holds no {side}, only the {' and '.join(ranks)}")
    end = dict(zip(ranks, accumulate(ranks.values()), strict=True))[side]
    half = slice(end - ranks[side], end)
    layers = {
        key: LoraLayer(down=layer.down[half], up=layer.up[:, half], alpha=layer.alpha * ranks[side] / len(layer.down))
        for key, layer in read_layers(artifact.lora).items()
    }
    return replace(
        artifact,
        name=name,
        tokens=tuple(token for token in artifact.tokens if side_of(token.name) == side),
        lora=write_layers(layers),
        rank_split={side: ranks[side]},
    )


def mix(subject_of: Artifact, style_of: Artifact, name: str) -> Artifact:
    """The person of one artifact in the style of another, both of split adapters.

    Raises MagiCaptureError where one lacks its half, for models of two kinds, and for words that are written alike.
    """
    if subject_of.architecture != style_of.architecture:
        raise MagiCaptureError(
            f"{subject_of.name} is for {subject_of.architecture}, {style_of.name} for {style_of.architecture}: mix two "
            "that were trained on the same kind of model"
        )
    subject, style = extract(subject_of, "subject", name), extract(style_of, "style", name)
    ranks = subject.rank_split | style.rank_split
    first, second = read_layers(subject.lora), read_layers(style.lora)
    layers = {}
    for key, layer in (first | second).items():
        shape = len(layer.up), layer.down.shape[1]
        parts = [
            _with_scale_1(half.get(key), ranks[side], shape) for half, side in ((first, "subject"), (second, "style"))
        ]
        layers[key] = LoraLayer(
            down=torch.cat([part.down for part in parts]),
            up=torch.cat([part.up for part in parts], 1),
            alpha=float(sum(ranks.values())),
        )
    tokens = check_tokens((*subject.tokens, *style.tokens))
    return replace(subject, tokens=tokens, lora=write_layers(layers), rank_split=ranks, metadata={})


def _with_scale_1(layer: LoraLayer | None, rank: int, shape: tuple[int, int]) -> LoraLayer:
    """The same update with alpha = rank; of a layer that one half lacks, none. shape: of the weight."""
    if layer is None:
        return LoraLayer(down=torch.zeros(rank, shape[1]), up=torch.zeros(shape[0], rank), alpha=rank)
    return replace(layer, up=layer.up * (layer.alpha / rank), alpha=rank)


def _ranks(artifact: Artifact) -> dict[Side, int]:
    """Each half's share of the rank, the subject's first, as they lie in the file.

    Raises MagiCaptureError for joint adapters, and where the shares are not those of the layers.
    """
    if not artifact.rank_split:
        raise MagiCaptureError(
            f"{artifact.name} was trained with joint adapters, which hold person and style as one: train it again with "
            "lora adapters = split, or leave their strengths at 1"
        )
    ranks: dict[Side, int] = {
        side: artifact.rank_split[side] for side in get_args(Side) if artifact.rank_split.get(side, 0) > 0
    }
    layers = read_layers(artifact.lora)
    if not layers or sum(ranks.values()) > MAX_RANK:
        raise MagiCaptureError(
            f"{artifact.name}: {len(layers)} layers of rank {sum(ranks.values())} have no halves; take the original"
        )
    for key, layer in layers.items():
        if len(layer.down) != sum(ranks.values()):
            raise MagiCaptureError(
                f"{artifact.name}: {key} has rank {len(layer.down)}, which is not what magicapture.rank_split says "
                f"({artifact.rank_split}): another tool has changed the file; take the original"
            )
    return ranks
