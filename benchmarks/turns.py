"""Two sides take turns; the ratio within each pair is what counts, since machines drift."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Pairs = Sequence[tuple[float, float]]
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
    """A figure over all pairs, and the middle 95 % of what as many pairs give, drawn from these again and again."""

    value: float
    low: float
    high: float


def ratio(first: Sequence[float], second: Sequence[float], of_means: bool = False) -> Ratio:
    """first / second: the median of the pairs' own ratios, or the ratio of the means.

    of_means: for steps that do not all do the same work. A median would tell of the commoner ones alone.
    """
    figure = mean_ratio if of_means else median_ratio
    pairs = list(zip(first, second, strict=True))
    draw = random.Random(0)
    found = sorted(figure(draw.choices(pairs, k=len(pairs))) for _ in range(NUM_BOOTSTRAPS))
    outside = NUM_BOOTSTRAPS // 40
    return Ratio(figure(pairs), found[outside], found[-outside - 1])


def median_ratio(pairs: Pairs) -> float:
    return statistics.median(a / b for a, b in pairs)


def mean_ratio(pairs: Pairs) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)
