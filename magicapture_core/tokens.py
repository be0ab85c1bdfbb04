"""Learned words: extra rows beside a frozen embedding table, and prompts that may hold them.

In: a text encoder, a tokenizer, `Token`s. Out: input ids and trainable rows. The old table stays the very same tensor,
so no optimizer can touch it, and the tokenizer is never changed: a placeholder is spliced into the ids as numbers
below zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TokenConfig
from .diffusion import NUM_TIMESTEPS
from .types import MagiCaptureError, Token

RANDOM_INIT_STD = 0.017  # of an embedding without a word to start from (the authors' code)


class Rows(nn.Module):
    """One trainable parameter [n,C] per learned word; called, all of them [N,C]."""

    def __init__(self, tokens: Sequence[Token], device: torch.device) -> None:
        super().__init__()
        self.words = nn.ParameterList(
            nn.Parameter(token.vectors.detach().to(device, torch.float32, copy=True)) for token in tokens
        )

    def forward(self) -> Tensor:
        return torch.cat(list(self.words))


class ExtendedEmbedding(nn.Module):
    """A frozen table of V rows, and beside it the learned ones: what `learned` gives when it is called, [N,C]."""

    def __init__(self, base: nn.Embedding, learned: nn.Module) -> None:
        super().__init__()
        self.base, self.learned = base, learned

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B,T], those below 0 being learned: -1 is the first row -> [B,T,C] in the table's dtype."""
        old = self.base(input_ids.clamp(min=0))
        with torch.autocast(input_ids.device.type, enabled=False):  # what is trained is to be what will be saved
            rows = self.learned()
        # looked up, not indexed: on several threads the gradient of an index is added up in any order
        learned = F.embedding((-1 - input_ids).clamp(min=0), rows)
        return torch.where((input_ids < 0)[..., None], learned.to(old.dtype), old)


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer together with the learned words: placeholder -> its consecutive ids.

    staged: placeholder -> its number of stages, of those words that have some; `at` says which they are at a timestep.
    """

    tokenizer: Any  # transformers' CLIPTokenizer, slow or fast, of any version
    placeholders: Mapping[str, tuple[int, ...]]
    staged: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, tokens: Sequence[Token]) -> Vocabulary:
        """The ids go from -1 down, so that neither the tokenizer's words nor the table's rows have to be counted."""
        placeholders, next_id = {}, -1
        for token in tokens:
            if token.placeholder in placeholders:
                raise MagiCaptureError(f"two learned words are both called {token.placeholder}: rename one")
            placeholders[token.placeholder] = tuple(range(next_id, next_id - len(token.vectors), -1))
            next_id -= len(token.vectors)
        return cls(
            tokenizer, placeholders, {token.placeholder: token.num_stages for token in tokens if token.num_stages}
        )

    def at(self, timestep: int) -> tuple[Vocabulary, Vocabulary]:
        """The words as the keys of cross-attention see them at a timestep, and as its values do; none has stages."""
        stages = {word: stage_of(timestep, num_stages) for word, num_stages in self.staged.items()}
        keys, values = (
            {word: (self.placeholders[word][2 * stage + role],) for word, stage in stages.items()} for role in (0, 1)
        )
        return (
            Vocabulary(self.tokenizer, {**self.placeholders, **keys}),
            Vocabulary(self.tokenizer, {**self.placeholders, **values}),
        )

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> input_ids [B,T]: start, text, end, padding, as many as the text encoder reads.

        Raises MagiCaptureError for a longer one: what lies beyond would have no say in the picture.
        """
        tokenizer = self.tokenizer
        length, end = tokenizer.model_max_length, tokenizer.eos_token_id
        rows = []
        for prompt in prompts:
            text = [*self._text_ids(prompt)]
            if len(text) > length - 2:
                raise MagiCaptureError(
                    f"the prompt has {len(text)} tokens, and the text encoder reads {length - 2}: shorten "
                    f"{prompt[:60]!r}..."
                )
            padding = [tokenizer.pad_token_id] * (length - 2 - len(text))
            rows.append([tokenizer.bos_token_id, *text, end, *padding])
        return torch.tensor(rows)

    def _text_ids(self, prompt: str) -> Iterator[int]:
        pieces = [prompt]
        if self.placeholders:
            pieces = re.split("(" + "|".join(map(re.escape, self.placeholders)) + ")", prompt)
        for piece in pieces:
            if piece in self.placeholders:
                yield from self.placeholders[piece]
            elif piece.strip():
                yield from self.tokenizer(piece, add_special_tokens=False).input_ids

    def columns(self, input_ids: Tensor, word: str) -> Tensor:
        """[B,T] averaging weights over every place of a word, learned or not; a row without it is all zero."""
        wanted = torch.tensor(list(self._text_ids(word)))
        starts = (input_ids.unfold(1, len(wanted), 1) == wanted).all(-1)
        found = torch.zeros(input_ids.shape)
        for offset in range(len(wanted)):
            found[:, offset : offset + starts.shape[1]] += starts
        return found / found.sum(1, keepdim=True).clamp(min=1)


def stage_of(timestep: int, num_stages: int) -> int:
    """The stage i = floor(t S / 1000) of S, 0 for the least noise; timesteps 0..999."""
    return timestep * num_stages // NUM_TIMESTEPS


def initial_token(name: str, config: TokenConfig, tokenizer: Any, table: Tensor, generator: torch.Generator) -> Token:
    """The word before training: every vector starts from the initializer's embedding, or from N(0, 0.017^2).

    table: [V,C] embedding weights. Raises MagiCaptureError when the initializer is not one token of the vocabulary.
    """
    if not config.initializer_token:
        vectors = torch.randn(config.num_vectors, table.shape[1], generator=generator) * RANDOM_INIT_STD
    else:
        ids = tokenizer(config.initializer_token, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise MagiCaptureError(
                f"{name}.initializer_token={config.initializer_token!r} is {len(ids)} tokens to this model: "
                "take one common word for it, such as woman, dog or portrait"
            )
        vectors = table[ids[0]].detach().cpu().float().repeat(config.num_vectors, 1)
    return Token(name=name, placeholder=config.placeholder_token, initializer=config.initializer_token, vectors=vectors)


def initial_tokens(
    words: Mapping[str, TokenConfig], tokenizer: Any, table: Tensor, generator: torch.Generator
) -> list[Token]:
    """`initial_token` of every concept, by name, drawn one after the other."""
    return [initial_token(name, config, tokenizer, table, generator) for name, config in words.items()]


@contextmanager
def injected(text_encoder: nn.Module, tokens: Sequence[Token]) -> Iterator[list[nn.Parameter]]:
    """The text encoder knows the tokens inside the block; yields their trainable rows, one [n,C] a token."""
    if not tokens:
        yield []
        return
    rows = Rows(tokens, text_encoder.get_input_embeddings().weight.device)  # pyright: ignore[reportCallIssue]
    with extended(text_encoder, rows):
        yield list(rows.words)


@contextmanager
def extended(text_encoder: nn.Module, learned: nn.Module) -> Iterator[None]:
    """Inside the block the ids below 0 are the rows [N,C] that `learned()` gives, with their gradient.

    On leaving, the module is what it was: the same embedding object, the same weights.
    """
    base: nn.Embedding = text_encoder.get_input_embeddings()  # pyright: ignore[reportCallIssue, reportAssignmentType]
    text_encoder.set_input_embeddings(ExtendedEmbedding(base, learned))  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        text_encoder.set_input_embeddings(base)  # pyright: ignore[reportCallIssue]
