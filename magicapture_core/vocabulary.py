"""The words of the embedded tiny model: byte-pair merges learnt from a list of words.

In: tiny/tokenizer/words.txt. Out: vocab.json and merges.txt beside it, committed: trained weights lean on their ids.
Every word of the list is one token, and any other text is spelt out by bytes, so that nothing is unknown.
`python -m magicapture_core.vocabulary` writes the two files again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from .files import write_atomic
from .models import clip_vocabulary

FOLDER = Path(__file__).parent / "tiny" / "tokenizer"
END_OF_WORD = "</w>"

Pair = tuple[str, str]


def learn_merges(words: Sequence[str]) -> list[Pair]:
    """Byte-pair encoding until each of the ASCII words is one symbol: most frequent pair first, then the first seen."""
    spellings = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges: list[Pair] = []
    while counts := Counter(pair for spelling in spellings for pair in pairwise(spelling)):
        best = max(counts, key=lambda pair: counts[pair])
        merges.append(best)
        spellings = [_merge(spelling, best) for spelling in spellings]
    return merges


def _merge(spelling: list[str], pair: Pair) -> list[str]:
    """Every place of the pair becomes one symbol, from left to right."""
    merged: list[str] = []
    for symbol in spelling:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def tokenizer_files(words: Sequence[str]) -> dict[str, str]:
    """File name -> text of a CLIP tokenizer that knows the words."""
    merges = [" ".join(pair) for pair in learn_merges(words)]
    return {
        "vocab.json": json.dumps(clip_vocabulary(merges), indent=0) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


def read_words() -> list[str]:
    return (FOLDER / "words.txt").read_text(encoding="utf-8").split()


def main() -> None:
    for name, text in tokenizer_files(read_words()).items():
        write_atomic(FOLDER / name, lambda file, text=text: file.write_text(text, encoding="utf-8", newline="\n"))


if __name__ == "__main__":
    main()
