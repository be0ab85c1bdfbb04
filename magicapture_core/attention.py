"""Cross-attention maps of chosen tokens, while the layer's own output still comes from the fused kernel.

In: a diffusers UNet and averaging weights over the prompt's positions. Out: a dictionary of maps by layer name, with
gradients. Knows nothing of losses or tokenizers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def token_probs(query: Tensor, key: Tensor, columns: Tensor) -> Tensor:
    """Attention probabilities of chosen tokens: softmax over all T positions, then only the asked columns are kept.

    query: [B,heads,N,d]. key: [B,heads,T,d]. columns: [B,K,T], each row weights that average a token's positions.
    Returns [B,K,heads,N] in fp32.
    """
    with torch.autocast(query.device.type, enabled=False):  # it would take the products in half precision again
        scores = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
        return (columns[:, None].float() @ scores.softmax(-1).transpose(-1, -2)).transpose(1, 2)


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


class CapturingProcessor:
    """diffusers' scaled-dot-product cross-attention, and beside it the maps of the asked tokens."""

    def __init__(self, capture: Capture, layer: str, size: dict[str, tuple[int, int]]) -> None:
        self.capture, self.layer, self.size = capture, layer, size

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """hidden_states [B,N,C], encoder_hidden_states [B,T,C'] -> [B,N,C]."""
        query, key, value = (
            project(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, states in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        self.capture.record(self.layer, self.size["grid"], query, key)
        output = F.scaled_dot_product_attention(query, key, value, attention_mask)
        output = attn.to_out[0](output.transpose(1, 2).flatten(2).to(query.dtype))
        return attn.to_out[1](output)


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
        for name, transformer in unet.named_modules():
            if hasattr(transformer, "transformer_blocks"):
                _watch(seen, name, transformer, undo)
        yield seen.maps


def _watch(seen: Capture, name: str, transformer: nn.Module, undo: ExitStack) -> None:
    """Give the cross-attention layers of one spatial transformer a capturing processor until `undo` closes."""
    size: dict[str, tuple[int, int]] = {}

    def remember_size(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        size["grid"] = (args[0].shape[2], args[0].shape[3])  # the last place that knows h and w; inside is only h * w

    undo.callback(transformer.register_forward_pre_hook(remember_size).remove)
    for index, block in enumerate(transformer.transformer_blocks):  # pyright: ignore[reportArgumentType, reportCallIssue]
        undo.callback(setattr, block.attn2, "processor", block.attn2.processor)
        block.attn2.processor = CapturingProcessor(seen, f"{name}.transformer_blocks.{index}.attn2", size)
