"""Learned words inside ComfyUI's prompts, without files.

A placeholder in the text is replaced, before ComfyUI's tokenizer sees it, by a made-up word that no one types; its ids
are then found in the result and give way to the learned rows. Weights such as (<subject>:1.2) hold, and the chunks of
77 are packed as ComfyUI packs an embedding file, so both give the same conditioning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

Entry = tuple[Any, float, int]  # a token id or a row [C], its weight, the word it belongs to
UNBREAKABLE = 8  # words of fewer entries move to the next chunk as a whole


class LearnedTokenizer:
    """A ComfyUI tokenizer that also knows learned words; everything else is the wrapped tokenizer's."""

    def __init__(
        self,
        tokenizer: Any,
        words: Mapping[str, Iterable[Tensor]],
        strengths: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """words: placeholder -> rows [n,C], or n [C]. strengths: placeholder -> what its weight in the text is
        multiplied by.

        Wrapping again adds to what is known, the newest of a name wins.
        """
        known = isinstance(tokenizer, LearnedTokenizer)
        self.wrapped = tokenizer.wrapped if known else tokenizer
        self.words = {**tokenizer.words, **words} if known else dict(words)
        self.strengths = {**tokenizer.strengths, **strengths} if known else dict(strengths)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # asked for by copy and pickle before __init__ has run
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, Any]:
        present = {
            marker(word): (self.words[word], self.strengths.get(word, 1.0)) for word in self.words if word in text
        }
        if not present:
            return self.wrapped.tokenize_with_weights(text, return_word_ids, **options)
        for word in sorted(self.words, key=len, reverse=True):
            text = text.replace(word, f" {marker(word)} ")
        chunks = self.wrapped.tokenize_with_weights(text, True, **options)
        spliced = {name: splice(self._inner(name), value, present) for name, value in chunks.items()}
        if return_word_ids:
            return spliced
        return {name: [[entry[:2] for entry in chunk] for chunk in value] for name, value in spliced.items()}

    def _inner(self, name: str) -> Any:
        return getattr(self.wrapped, f"clip_{name}")


def marker(placeholder: str) -> str:
    """A lower-case word of letters only that stands for the placeholder while ComfyUI tokenizes."""
    digest = hashlib.sha256(placeholder.encode()).hexdigest()[:16]
    return "zq" + digest.translate(str.maketrans("0123456789", "ghijklmnop"))


def splice(
    tokenizer: Any, chunks: list[list[Entry]], words: Mapping[str, tuple[Iterable[Tensor], float]]
) -> list[list[Entry]]:
    """Chunks of 77 holding markers -> chunks of 77 holding rows, each as strong as it is said.

    tokenizer: ComfyUI's, of one text encoder. words: marker -> rows [n,C] and their strength.
    """
    entries = [entry for chunk in chunks for entry in _content(tokenizer, chunk)]
    runs = {_ids(tokenizer, word): learned for word, learned in words.items()}
    groups: list[list[Entry]] = []
    position = 0
    while position < len(entries):
        run = next((run for run in runs if _starts_with(entries, position, run)), None)
        if run is not None:
            rows, strength = runs[run]
            groups.append([(row, entries[position][1] * strength, 0) for row in rows])
            position += len(run)
            continue
        entry = entries[position]
        if not groups or groups[-1][-1][2] != entry[2]:
            groups.append([])
        groups[-1].append(entry)
        position += 1
    return _pack(tokenizer, groups)


def _ids(tokenizer: Any, word: str) -> tuple[int, ...]:
    return tuple(entry[0] for entry in _content(tokenizer, tokenizer.tokenize_with_weights(word, True)[0]))


def _starts_with(entries: list[Entry], position: int, run: tuple[int, ...]) -> bool:
    here = entries[position : position + len(run)]
    return len(here) == len(run) and all(
        isinstance(token, int) and token == wanted for (token, *_), wanted in zip(here, run, strict=True)
    )


def _content(tokenizer: Any, chunk: list[Entry]) -> list[Entry]:
    """A chunk without its start, end and padding, which belong to word 0."""
    return [entry for entry in chunk if entry[2] != 0]


def _pack(tokenizer: Any, groups: list[list[Entry]]) -> list[list[Entry]]:
    """Groups -> full chunks: start, at most 75 entries, end, padding."""
    start, end = (tokenizer.start_token, 1.0, 0), (tokenizer.end_token, 1.0, 0)
    padding = (tokenizer.pad_token, 1.0, 0)
    room = tokenizer.max_length - 2
    bodies: list[list[Entry]] = [[]]
    for number, group in enumerate(groups, start=1):
        rest = [(token, weight, number) for token, weight, _ in group]
        while rest:
            free = room - len(bodies[-1])
            if len(rest) > free and len(group) < UNBREAKABLE:
                free = 0
            bodies[-1] += rest[:free]
            rest = rest[free:]
            if rest:
                bodies.append([])
    return [([start, *body, end] + [padding] * tokenizer.max_length)[: tokenizer.max_length] for body in bodies]
