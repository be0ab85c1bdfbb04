"""Two sides take turns; the ratio within each pair is what counts, since machines drift."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
NUM_BOOTSTRAPS = 10_000


def take_turns(first: Callable[[], T], second: Callable[[], T], pairs: int) -> tuple[list[T], list[T]]:
    """What each gave in `pairs` turns. The order alternates: the second begins, then the first, and so on."""
    taken: tuple[list[T], list[T]] = ([], [])
    for pair in range(pairs):
        sides = ((first, taken[0]), (second, taken[1]))
        for side, results in sides if pair % 2 else sides[::-1]:
            results.append(side())
    return taken


@dataclass(frozen=True)
class Ratio:
    """A median, and the middle 95 % of medians of as many pairs drawn from these again and again."""

    median: float
    low: float
    high: float


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """first / second, pair by pair."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(NUM_BOOTSTRAPS))
    outside = NUM_BOOTSTRAPS // 40
    return Ratio(statistics.median(ratios), medians[outside], medians[-outside - 1])
