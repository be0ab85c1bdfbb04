"""What is trained: a module that gives the words of all stages when it is called.

In: the embedding of a plain word. Out: [2S,C], row 2i being stage i's word for the keys and row 2i + 1 that for the
values. Both modules start at the plain word itself, whatever the stage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SefiConfig

NUM_HEADS, HEAD_DIM, WIDENING = 8, 64, 4


def stage_words(config: SefiConfig, plain: Tensor, generator: torch.Generator) -> nn.Module:
    """plain: [C], the embedding of the plain word. Draws what is random from the generator, on the CPU."""
    roles = 2 if config.key_value_split else 1
    kind: Callable[..., nn.Module] = SelfAttentionBlock if config.parts == "block" else StageVectors
    words = kind(plain.detach().cpu().float(), config.num_stages * roles, generator)
    return words if config.key_value_split else Shared(words)


class StageVectors(nn.Module):
    """The vectors themselves. [n,C]."""

    def __init__(self, plain: Tensor, count: int, generator: torch.Generator) -> None:
        super().__init__()
        self.vectors = nn.Parameter(plain.repeat(count, 1))

    def forward(self) -> Tensor:
        return self.vectors


class SelfAttentionBlock(nn.Module):
    """One transformer block over the plain word P, whose feed-forward part ends in all vectors:

    x = P + attn(LN P), x = x + attn(LN x), P_1 .. P_n = P + FF(LN x), FF a GEGLU of four times the width.

    After ProSpect's (arXiv 2305.16225), which the paper builds on; its own structure is not published
    (reconstruction). Ours: P is added at the end and the last layer starts at zero, so that training starts at the
    plain word; and there is no dropout, which of a single input would be noise alone and make resuming inexact.
    """

    def __init__(self, plain: Tensor, count: int, generator: torch.Generator) -> None:
        super().__init__()
        width = len(plain)
        self.plain: Tensor
        self.register_buffer("plain", plain)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attentions = nn.ModuleList(WordAttention(width) for _ in range(2))
        self.widen = nn.Linear(width, 2 * WIDENING * width)
        self.narrow = nn.Linear(WIDENING * width, count * width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                _draw(layer, generator)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self) -> Tensor:
        states = self.plain[None]
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            states = states + attention(norm(states))
        content, gate = self.widen(self.norms[2](states)).chunk(2, -1)
        return self.plain + self.narrow(content * F.gelu(gate)).view(-1, len(self.plain))


class WordAttention(nn.Module):
    """Self-attention over [N,C] of 8 heads of 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width, 3 * NUM_HEADS * HEAD_DIM, bias=False)
        self.outward = nn.Linear(NUM_HEADS * HEAD_DIM, width)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.inward(states).view(len(states), 3, NUM_HEADS, HEAD_DIM).permute(1, 2, 0, 3)
        return self.outward(F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1))


class Shared(nn.Module):
    """Keys and values see the same word: each row twice."""

    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.words = words

    def forward(self) -> Tensor:
        return self.words().repeat_interleave(2, 0)


def _draw(layer: nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's own start, U(-1/sqrt(n), 1/sqrt(n)) of n inputs, but from the generator."""
    bound = layer.in_features**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
