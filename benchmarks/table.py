"""Measured rows -> one Markdown table, and whether each bar is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .process import Turn
from .rows import Row
from .turns import ratio

COLUMNS = (
    "row", "px", "first, s", "second, s", "ratio [95 %]", "bar", "pairs", "peak, GB", "TFLOP", "of limit",
)  # fmt: skip
ENOUGH_PAIRS = 30  # for a bar
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one side of a row came to. flops: of its step, 0 where it could not be counted."""

    turns: Sequence[Turn]
    flops: int

    @property
    def seconds(self) -> list[float]:
        return [turn.seconds for turn in self.turns]

    @property
    def peak_bytes(self) -> int:
        return max(turn.peak_bytes for turn in self.turns)


def line(row: Row, first: Side, second: Side, limit_tflops: float | None) -> str:
    """One line of the table. limit_tflops: what the card can do in a second in bf16."""
    found = ratio(first.seconds, second.seconds, of_means=row.kind.uneven)
    counted = replace(first, flops=0) if row.kind.uneven else first  # no step's count is that of all
    limit = limit_tflops if row.plain.dtype == "bf16" else None
    cells = [
        row.title,
        str(row.plain.pixels),
        spread(first.seconds),
        spread(second.seconds),
        f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]",
        bar(row, found.high, first, second),
        pairs(row, first),
        both(*(f"{side.peak_bytes / 1e9:.2f}" for side in (first, second))),
        both(*(tera(side.flops) for side in (counted, second))),
        both(*(share(side, limit) for side in (counted, second))),
    ]
    return f"| {' | '.join(cells)} |"


def not_run(row: Row, reason: str) -> str:
    cells = [row.title, str(row.plain.pixels), f"not run: {reason.replace('|', '/')}"]
    return f"| {' | '.join(cells + ['-'] * (len(COLUMNS) - len(cells)))} |"


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def pairs(row: Row, first: Side) -> str:
    """How many, and in how many the identity loss acted, where that varies."""
    count = str(len(first.turns))
    return f"{count}, fired in {sum(turn.fired for turn in first.turns)}" if row.kind.uneven else count


def bar(row: Row, high: float, first: Side, second: Side) -> str:
    """A bar is met if the upper end of the interval is within it, which few pairs do not prove."""
    told = []
    if row.bar is not None:
        few = ", few pairs" if high <= row.bar and len(first.turns) < ENOUGH_PAIRS else ""
        told.append(f"<= {row.bar:.3g}: {verdict(high <= row.bar)}{few}")
    if row.kind.saves_memory:
        told.append(f"memory: {verdict(first.peak_bytes <= second.peak_bytes)}")
    return ", ".join(told) or "-"


def verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def both(first: str, second: str) -> str:
    return f"{first} / {second}"


def tera(flops: int) -> str:
    return f"{flops / 1e12:.4g}" if flops else "-"


def share(side: Side, limit_tflops: float | None) -> str:
    """Of what the card can do, in the time that the step took."""
    if not limit_tflops or not side.flops:
        return "-"
    return f"{side.flops / 1e12 / statistics.median(side.seconds) / limit_tflops:.0%}"
