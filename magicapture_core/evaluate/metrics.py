"""The metrics, and from the scores of single pictures to figures: means, intervals, the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .interval import interval

DIGITS = 4
NETWORKS = ("recogniser", "clip", "aesthetic")  # options


class Metric(NamedTuple):
    """title: in the table. options: of the command, without which it is left out. none: why no picture has it."""

    title: str
    options: tuple[str, ...] = ()
    none: str = ""


METRICS = {
    "csim": Metric("CSIM", ("recogniser", "subject"), "no face"),
    "csim_strict": Metric("CSIM, no face = 0", ("recogniser", "subject")),
    "detection": Metric("face found"),
    "style": Metric("style", ("clip", "style")),
    "clip_t": Metric("CLIP-T", ("clip", "prompt"), "no prompt"),
    "aesthetic": Metric("aesthetic", ("clip", "aesthetic")),
}


def summarise(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every metric over the scores of all pictures: mean, ends of its 95 % interval, and of how many pictures; one
    picture has no interval. Or why it was left out.

    left_out: those that could not be measured, and why.
    """
    return {metric: _summary(metric, rows, left_out.get(metric)) for metric in METRICS}


def _summary(metric: str, rows: Sequence[Mapping[str, Any]], why: str | None) -> dict[str, Any]:
    values = [row[metric] for row in rows if row[metric] is not None]
    if not values:
        return {"left_out": why or METRICS[metric].none}
    mean, low, high = (round(number, DIGITS) for number in interval(values))
    ends = {"low": low, "high": high} if len(values) > 1 else {"low": None, "high": None}
    return {"mean": mean, **ends, "pictures": len(values)}


def worst(rows: Sequence[Mapping[str, Any]], metric: str, count: int) -> list[Mapping[str, Any]]:
    """The rows of the lowest scores, the lowest first; of faces found those that show none."""
    below = 1.0 if metric == "detection" else float("inf")
    scored = [row for row in rows if row[metric] is not None and row[metric] < below]
    return sorted(scored, key=lambda row: row[metric])[:count]
