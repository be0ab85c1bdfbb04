"""Cross-attention looked at, while the layer's own output still comes from the fused kernel.

In: a diffusers UNet, and averaging weights over the prompt's positions or a reference prompt. Out: maps of chosen
tokens, or how far they are from the reference's, by layer name and with gradients. Keys and values may see prompts of
their own. Knows nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import reference_attention


def attention_probs(query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt d) in fp32. query: [B,heads,N,d]. key: [B,heads,T,d]. Returns [B,heads,N,T]."""
    with torch.autocast(query.device.type, enabled=False):  # it would take the product in half precision again
        return (query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)


def token_probs(query: Tensor, key: Tensor, columns: Tensor) -> Tensor:
    """Attention probabilities of chosen tokens: softmax over all T positions, then only the asked columns are kept.

    query: [B,heads,N,d]. key: [B,heads,T,d]. columns: [B,K,T], each row weights that average a token's positions.
    Returns [B,K,heads,N] in fp32.
    """
    with torch.autocast(query.device.type, enabled=False):
        return (columns[:, None].float() @ attention_probs(query, key).transpose(-1, -2)).transpose(1, 2)


@dataclass
class Capture:
    """What to look at during one forward pass, and what was seen."""

    tokens: Tensor  # [B,K,T]
    resolutions: Collection[tuple[int, int]] | None
    maps: dict[str, Tensor] = field(default_factory=dict)  # layer name -> [B,K,heads,h,w]

    def record(self, layer: str, size: tuple[int, int], query: Tensor, key: Tensor) -> None:
        if self.resolutions is None or size in self.resolutions:
            probs = token_probs(query, key, self.tokens.to(query.device)).unflatten(-1, size)
            # A checkpointed block runs again in the backward pass, and must do the same work, but its maps are taken.
            self.maps.setdefault(layer, probs)


def heads_of(attn: Any, states: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """[B,N,C] -> [B,heads,N,d]."""
    return project(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)


class SplitProcessor:
    """diffusers' scaled-dot-product cross-attention, whose keys and values may see prompts of their own."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """hidden_states [B,N,C], encoder_hidden_states [B,T,C'] or [B,R,T,C'], see `split_contexts` -> [B,N,C]."""
        contexts = encoder_hidden_states
        of_keys, of_values, *others = contexts.unbind(1) if contexts.ndim == 4 else (contexts, contexts)
        query = heads_of(attn, hidden_states, attn.to_q)
        key, value = heads_of(attn, of_keys, attn.to_k), heads_of(attn, of_values, attn.to_v)
        self.look(attn, query, key, others)
        output = F.scaled_dot_product_attention(query, key, value, attention_mask)
        output = attn.to_out[0](output.transpose(1, 2).flatten(2).to(query.dtype))
        return attn.to_out[1](output)

    def look(self, attn: Any, query: Tensor, key: Tensor, others: list[Tensor]) -> None:
        """What passes by: [B,heads,N,d], [B,heads,T,d], and the prompts behind those of the keys and the values."""


class CapturingProcessor(SplitProcessor):
    """The same, and beside it the maps of the asked tokens."""

    def __init__(self, capture: Capture, layer: str, size: dict[str, tuple[int, int]]) -> None:
        self.capture, self.layer, self.size = capture, layer, size

    def look(self, attn: Any, query: Tensor, key: Tensor, others: list[Tensor]) -> None:
        self.capture.record(self.layer, self.size["grid"], query, key)


class ComparingProcessor(SplitProcessor):
    """The same, and beside it how far the attention is from that which a reference prompt gets from the same queries.

    terms: gets [B] by layer name, for grids of at most `largest` cells.
    """

    def __init__(self, layer: str, largest: int, terms: dict[str, Tensor]) -> None:
        self.layer, self.largest, self.terms = layer, largest, terms

    def look(self, attn: Any, query: Tensor, key: Tensor, others: list[Tensor]) -> None:
        if query.shape[2] <= self.largest:
            with torch.no_grad():
                reference = attention_probs(query, heads_of(attn, others[0], attn.to_k))
            term = reference_attention(attention_probs(query, key), reference)
            self.terms.setdefault(self.layer, term)  # of the first run, as `Capture.record` takes it


@contextmanager
def capture(
    unet: nn.Module, tokens: Tensor, resolutions: Collection[tuple[int, int]] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Inside the block each forward pass of the UNet fills the yielded dictionary: layer name -> [B,K,heads,h,w].

    tokens: [B,K,T] averaging weights over prompt positions, B as in the forward pass. resolutions: the (h, w) grids to
    read, None for all. Gradients flow through the maps, under non-reentrant checkpointing too. One forward pass a
    block: a layer keeps the maps of its first run. With checkpointing the backward pass belongs inside the block too,
    since layers run again there. On leaving, the UNet has its own processors back.
    """
    seen = Capture(tokens, resolutions)
    with ExitStack() as undo:
        for name, transformer in spatial_transformers(unet).items():
            _watch(seen, name, transformer, undo)
        yield seen.maps


def _watch(seen: Capture, name: str, transformer: Any, undo: ExitStack) -> None:
    """Give the cross-attention layers of one spatial transformer a capturing processor until `undo` closes."""
    size: dict[str, tuple[int, int]] = {}

    def remember_size(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        size["grid"] = (args[0].shape[2], args[0].shape[3])  # the last place that knows h and w; inside is only h * w

    undo.callback(transformer.register_forward_pre_hook(remember_size).remove)
    for index, block in enumerate(transformer.transformer_blocks):
        _replace(block.attn2, CapturingProcessor(seen, f"{name}.transformer_blocks.{index}.attn2", size), undo)


@contextmanager
def split_contexts(unet: nn.Module) -> Iterator[None]:
    """Inside the block the UNet takes, in the place of prompt_embeds [B,T,C], contexts [B,2,T,C] too: the prompt that
    the keys of every cross-attention see, and the one that its values see. Of two alike the result is that of one."""
    with ExitStack() as undo:
        for layer in cross_attentions(unet).values():
            _replace(layer, SplitProcessor(), undo)
        yield


@contextmanager
def compared(unet: nn.Module, largest: int) -> Iterator[dict[str, Tensor]]:
    """Inside the block the UNet takes contexts [B,3,T,C], of the keys, of the values and of a reference; a forward pass
    fills the yielded dictionary: layer name -> `losses.reference_attention` of its maps, [B], from the same queries.

    largest: cells of the grids that count. Of checkpointing and repeated passes holds what `capture` says.
    """
    terms: dict[str, Tensor] = {}
    with ExitStack() as undo:
        for name, layer in cross_attentions(unet).items():
            _replace(layer, ComparingProcessor(name, largest, terms), undo)
        yield terms


def spatial_transformers(unet: Any) -> dict[str, Any]:
    """Name -> transformer, from the input to the output. Asked for in every pass: a walk through all of the UNet's
    modules takes longer than the launch of some of its blocks."""
    blocks = [(f"down_blocks.{index}", block) for index, block in enumerate(unet.down_blocks)]
    blocks.append(("mid_block", unet.mid_block))
    blocks += [(f"up_blocks.{index}", block) for index, block in enumerate(unet.up_blocks)]
    return {
        f"{name}.attentions.{index}": transformer
        for name, block in blocks
        for index, transformer in enumerate(getattr(block, "attentions", ()))
    }


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """Name -> layer, from the input to the output."""
    return {
        f"{name}.transformer_blocks.{index}.attn2": block.attn2
        for name, transformer in spatial_transformers(unet).items()
        for index, block in enumerate(transformer.transformer_blocks)
    }


def _replace(layer: Any, processor: SplitProcessor, undo: ExitStack) -> None:
    undo.callback(setattr, layer, "processor", layer.processor)
    layer.processor = processor
