"""Where the words of a prompt stand: word -> columns of the cross-attention, by the tokens of ComfyUI's own CLIP.

Weights such as (word:1.2) do not change the tokens, embedding files and learned words are rows in place of ids, and
long texts go on in further chunks of 77 columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError

Entry = int | Tensor  # a token id, or the row [C] of a learned word


def split_words(words: str) -> list[str]:
    """`face, blue hair` or one word a line -> words without doubles, in their order."""
    return list(dict.fromkeys(word.strip() for word in re.split(r"[,\n]", words) if word.strip()))


def tokenize(clip: Any, text: str) -> tuple[list[tuple[Entry, int]], int]:
    """Every token of a text with its column, and the number of columns T of the text's conditioning.

    Position p of chunk c is column 77 c + p. Start, end and padding are columns too, but not tokens of the text.
    """
    chunks = clip.tokenize(text, return_word_ids=True)
    if set(chunks) != {"l"}:
        raise MagiCaptureError("clip: it is not that of an SD1.5 model; load an SD1.5 checkpoint")
    entries = [entry for chunk in chunks["l"] for entry in chunk]
    return [(entry[0], column) for column, entry in enumerate(entries) if entry[2] != 0], len(entries)


def word_columns(clip: Any, prompt: str, words: str, artifact: Any = None) -> tuple[list[str], Tensor]:
    """The words that are recorded and, per word, the weights [K,T] that average all its columns of the prompt.

    The artifact's learned words count where the prompt has them, as placeholder or as an embedding file; a word that
    was asked for by name must be there.
    """
    entries, num_columns = tokenize(clip, prompt)
    found = learned_words(clip, entries, artifact.tokens) if artifact else {}
    for word in split_words(words):
        found[word] = occurrences(entries, spell(clip, word))
        if not found[word]:
            raise MagiCaptureError(f"words: {word!r} is not in the prompt {prompt!r}; write it as it stands there")
    if not found:
        raise MagiCaptureError(f"words: name at least one word of the prompt {prompt!r} to look for")
    weights = torch.zeros(len(found), num_columns)
    for row, columns in zip(weights, found.values(), strict=True):
        row[columns] = 1 / len(columns)
    return list(found), weights


def learned_words(clip: Any, entries: Sequence[tuple[Entry, int]], tokens: Sequence[Any]) -> dict[str, list[int]]:
    """Columns of those of the artifact's tokens that the prompt holds, by their placeholder or by their vectors."""
    found = {}
    for token in tokens:
        placeholder = spell(clip, token.placeholder)
        if occurrences(entries, placeholder) and not isinstance(placeholder[0], Tensor):
            raise MagiCaptureError(
                f"clip: {token.placeholder} is plain text to it; connect the CLIP of Load MagiCapture LoRA"
            )
        found[token.placeholder] = occurrences(entries, list(token.vectors))
    return {word: columns for word, columns in found.items() if columns}


def spell(clip: Any, word: str) -> list[Entry]:
    return [entry for entry, _ in tokenize(clip, word)[0]]


def occurrences(entries: Sequence[tuple[Entry, int]], run: Sequence[Entry]) -> list[int]:
    """Columns of every place where the run of tokens stands, across the border of two chunks too."""
    columns: set[int] = set()
    for start in range(len(entries) - len(run) + 1 if run else 0):
        here = entries[start : start + len(run)]
        if all(same(entry, wanted) for (entry, _), wanted in zip(here, run, strict=True)):
            columns.update(column for _, column in here)
    return sorted(columns)


def same(entry: Entry, wanted: Entry) -> bool:
    if isinstance(entry, Tensor) and isinstance(wanted, Tensor):
        a, b = entry.float().cpu(), wanted.float().cpu()
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-5)  # a file may be in half precision
    return isinstance(entry, int) and isinstance(wanted, int) and entry == wanted
