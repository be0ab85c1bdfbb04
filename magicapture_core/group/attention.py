"""Mask Guided Multi-ID Cross Attention: in one pass of the UNet everybody acts in their own region alone.

In every cross-attention layer, M_n being person n's region on the layer's grid, Z_n the whole layer with their text and
their LoRA, Z the layer with the text of the picture:

    output = (1 - sum_n M_n) Z + sum_n M_n Z_n

Z_n is worked out at the cells of the region only, so that all people together cost about one layer more, however many
they are. In: a UNet of diffusers or of ComfyUI, whose transformers have the same names inside. A reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import heads_of
from ..types import LoraLayer, MagiCaptureError


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One person in a pass of B items.

    keys, values: [B,T,C], what the keys and the values of cross-attention see of their text. layers: their LoRA, by
    the linear layers that it acts on, each inside a transformer block.
    """

    keys: Tensor
    values: Tensor
    layers: Mapping[nn.Module, LoraLayer]


class Place(NamedTuple):
    """Cells of a flattened grid, [n], and how much of each is a person's, [n,1]."""

    cells: Tensor
    share: Tensor


class Grid(NamedTuple):
    """What a layer that works on so many cells shares out. rest: [cells,1], how much of each is nobody's."""

    rest: Tensor
    places: list[Place]


class Regions:
    """Where everybody acts, on every grid of a UNet. What is found once serves all steps of a sampling.

    masks: [1,H,W] 0..1 each, of any size, the same for all; where they sum to more than 1 they share the place.
    """

    def __init__(self, masks: Sequence[Tensor]) -> None:
        self._shares = shares(torch.stack(list(masks)))
        self._grids: dict[tuple[int, int, torch.device], Grid] = {}

    def grid(self, height: int, width: int, device: torch.device) -> Grid:
        key = (height, width, device)
        if key not in self._grids:
            means = F.interpolate(self._shares.float(), (height, width), mode="area").flatten(1)[..., None]
            places = [Place(cells := share[:, 0].nonzero().flatten(), share[cells]) for share in means]
            self._grids[key] = Grid(
                (1 - means.sum(0)).to(device), [Place(*(part.to(device) for part in place)) for place in places]
            )
        return self._grids[key]


class Layer(NamedTuple):
    """A linear layer with a person's LoRA on it, whose hooks do not see it called."""

    module: nn.Module
    lora: LoraLayer | None

    def __call__(self, states: Tensor) -> Tensor:
        output = self.module.forward(states)
        return output if self.lora is None else output + delta(self.lora, states)


def delta(lora: LoraLayer, states: Tensor) -> Tensor:
    """What a LoRA adds to a layer's output, (alpha / rank) up down x. states: [...,in] -> [...,out]."""
    inner = F.linear(states, lora.down.to(states))
    return F.linear(inner, lora.up.to(states)) * (lora.alpha / len(lora.down))


def shares(masks: Tensor) -> Tensor:
    """masks [N,1,H,W] 0..1 -> the same where they do not overlap; where they sum to more than 1, divided by the sum."""
    return masks / masks.sum(0, keepdim=True).clamp(min=1)


@contextmanager
def acting(unet: nn.Module, regions: Regions, branches: Sequence[Branch]) -> Iterator[None]:
    """Inside the block the people act in the UNet's passes, each in their region; on leaving it is what it was.

    Whatever else is done to a cross-attention layer, by processors or by the patches of other packs, goes on giving Z.
    Raises MagiCaptureError for a LoRA on a layer that lies on no grid; in a pass, for a patch that takes cells away.
    """
    blocks = dict(_blocks(unet))
    inside = {module for block in blocks for module in block.modules()}
    if any(module not in inside for branch in branches for module in branch.layers):
        raise MagiCaptureError(
            "artifact: its LoRA acts on layers outside of the attention blocks too, which no region can confine; take "
            "one that Train MagiCapture LoRA made"
        )
    with ExitStack() as undo:
        grids: dict[nn.Module, Grid] = {}  # of a transformer, the one that it works on now

        def find(transformer: nn.Module, args: tuple[Tensor, ...]) -> None:
            """Before it runs: the last moment that knows height and width."""
            grids[transformer] = regions.grid(args[0].shape[2], args[0].shape[3], args[0].device)

        for transformer in dict.fromkeys(blocks.values()):
            undo.callback(transformer.register_forward_pre_hook(find).remove)
        for block, transformer in blocks.items():
            _confine(block, branches, partial(grids.__getitem__, transformer), undo)
        yield


def _blocks(unet: nn.Module) -> Iterator[tuple[Any, nn.Module]]:
    """Every transformer block, and the transformer that it belongs to."""
    for transformer in unet.modules():
        for block in getattr(transformer, "transformer_blocks", ()):
            yield block, transformer


def _confine(block: Any, branches: Sequence[Branch], grid: Callable[[], Grid], undo: ExitStack) -> None:
    """Hooks on one transformer block until `undo` closes. grid: that of the block, in a pass."""
    attn = block.attn2
    seen: dict[str, Tensor] = {}

    def remember(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["states"] = args[0]

    def blend(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        states, (rest, places) = seen.pop("states"), grid()
        check_cells(states, rest, branches)
        result = rest.to(output) * output
        for branch, (cells, share) in zip(branches, places, strict=True):
            result.index_add_(1, cells, share.to(output) * _attend(attn, branch, states[:, cells]))
        return result

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        states, (rest, places), changed = args[0], grid(), output.clone()
        check_cells(states, rest, branches)
        for branch, (cells, share) in zip(branches, places, strict=True):
            if lora := branch.layers.get(module):
                changed.index_add_(1, cells, share.to(output) * delta(lora, states[:, cells]))
        return changed

    undo.callback(attn.to_q.register_forward_pre_hook(remember).remove)
    undo.callback(attn.to_out[0].register_forward_hook(blend).remove)
    across = set(attn.modules())
    for module in block.modules():
        if module not in across and any(module in branch.layers for branch in branches):
            undo.callback(module.register_forward_hook(add).remove)


def check_cells(states: Tensor, rest: Tensor, branches: Sequence[Branch]) -> None:
    """Raises MagiCaptureError unless states [B,n,C] are those of all cells, for the items that branches have texts of.

    HyperTile cuts the grid into tiles, ToMe merges cells, packs for regional prompts repeat the items.
    """
    wanted, found = (len(branches[0].keys), len(rest)), tuple(states.shape[:2])
    if found != wanted:
        raise MagiCaptureError(
            f"model: a patch on it makes attention work on {found[0]} x {found[1]} cells, not on the picture's "
            f"{wanted[0]} x {wanted[1]}, so no region can be found there; take out HyperTile, ToMe or whichever it is"
        )


def _attend(attn: Any, branch: Branch, states: Tensor) -> Tensor:
    """A whole cross-attention layer for one person. states: [B,n,C] at their cells -> the same shape."""
    query, key, value, out = (
        Layer(module, branch.layers.get(module)) for module in (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    )
    output = F.scaled_dot_product_attention(
        heads_of(attn, states, query),
        heads_of(attn, branch.keys.to(states), key),
        heads_of(attn, branch.values.to(states), value),
    )
    return out(output.transpose(1, 2).flatten(2))
