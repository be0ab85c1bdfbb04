"""From finished runs to a table: means over pairs, paired differences to MagiCapture, 95 % by bootstrap over pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from magicapture_core.evaluate.interval import interval

from . import world
from .methods import METHODS, OURS
from .parameters import Identity

METRICS: dict[str, str] = {  # every figure of a run, and whether more is better
    "csim": "CSIM", "style": "Style", "style_words": "style words", "trait_error": "trait error (less)",
    "truth_distance": "distance to the truth (less)", "subject_leakage": "leakage of the person's word (less)",
    "style_leakage": "leakage of the style's word (less)", "detection": "faces found", "glasses": "obeys glasses",
    "blue_background": "obeys blue background", "style_only_csim": "CSIM of style-only pictures (less)",
    "style_only_detection": "faces found in those", "owner_csim": "CSIM to the style's own person (less)",
}  # fmt: skip


class Question(NamedTuple):
    """One that the main table leaves to a small one: the methods that answer it, those to compare with, the figures."""

    title: str
    own: tuple[str, ...]
    beside: tuple[str, ...]
    metrics: tuple[str, ...]


QUESTIONS = (
    Question(
        "Attention losses, each in the place of attention refocusing",
        own=("mean_then_square", "break_a_scene", "fastcomposer"),
        beside=("without_ar", OURS),
        metrics=("csim", "style", "subject_leakage", "style_leakage", "detection", "blue_background"),
    ),
    Question(
        "Person and style apart",
        own=("split", "mixed"),
        beside=("untouched", OURS),
        metrics=("csim", "owner_csim", "style", "detection", "style_only_csim", "style_only_detection"),
    ),
)
MAIN_METHODS = [name for name in METHODS if all(name not in question.own for question in QUESTIONS)]
APART = ("style_only_csim", "style_only_detection", "owner_csim")  # what the small table alone tells
MAIN_METRICS = [metric for metric in METRICS if metric not in APART]
SKIN_TONES = ("light", "middle", "dark")
TITLES = METRICS | {f"csim_{tone}": f"CSIM, {tone} skin" for tone in SKIN_TONES}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: a method's mean over n pairs and its 95 % interval; or of the difference ours minus the method's."""

    method: str
    metric: str
    mean: float
    lo: float
    hi: float
    n: int


def by_pair(lines: Iterable[Mapping[str, Any]], metric: str) -> dict[str, dict[int, float]]:
    """method -> pair -> the mean over its seeds. Left out are figures that could not be measured (no face), and those
    that an older run does not know."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if (value := line["figures"].get(metric)) is not None:
            found[line["method"]][line["pair"]].append(value)
    return {method: {pair: float(np.mean(v)) for pair, v in pairs.items()} for method, pairs in found.items()}


def means(lines: Sequence[Mapping[str, Any]], metrics: Iterable[str] = METRICS) -> list[Row]:
    """Every method's every metric."""
    return [
        row(method, metric, list(pairs.values()))
        for metric in metrics
        for method, pairs in by_pair(lines, metric).items()
    ]


def difference(lines: Sequence[Mapping[str, Any]], metric: str, method: str, of: str = OURS) -> Row | None:
    """The method `of` minus another one, over the pairs that both have; None where they share none."""
    found = by_pair(lines, metric)
    ours, theirs = found.get(of, {}), found.get(method, {})
    shared = sorted(ours.keys() & theirs.keys())
    return row(method, metric, [ours[pair] - theirs[pair] for pair in shared]) if shared else None


def differences(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """MagiCapture minus each other method."""
    others = [(metric, method) for metric in METRICS for method in by_pair(lines, metric) if method != OURS]
    found = (difference(lines, metric, method) for metric, method in others)
    return [row for row in found if row is not None]


def csim_by_skin(lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """CSIM of the pairs of each third of skin tones, `csim_light` to `csim_dark`."""
    by_method = by_pair(lines, "csim")
    pairs = sorted(set().union(*by_method.values()), key=skin)
    rows = []
    for third, tone in enumerate(SKIN_TONES):
        chosen = pairs[len(pairs) * third // 3 : len(pairs) * (third + 1) // 3]
        for method, values in by_method.items():
            if found := [values[pair] for pair in chosen if pair in values]:
                rows.append(row(method, f"csim_{tone}", found))
    return rows


def skin(pair: int) -> float:
    """0 light to 1 dark, of a test pair's person."""
    who = world.identity("test", pair)
    assert isinstance(who, Identity)
    return who.skin


def row(method: str, metric: str, values: Sequence[float]) -> Row:
    mean, low, high = interval(values)
    return Row(method=method, metric=metric, mean=mean, lo=low, hi=high, n=len(values))


def to_json(key: str, rows: Sequence[Row], ahead: Sequence[Row]) -> dict[str, Any]:
    """ahead: the paired differences."""
    return {"format": 1, "key": key, "rows": [asdict(row) for row in rows], "ahead": [asdict(row) for row in ahead]}


def to_markdown(rows: Sequence[Row], metrics: Sequence[str], methods: Collection[str] = METHODS) -> str:
    """Of these methods, in the order of METHODS."""
    names = {name: method.title for name, method in METHODS.items() if name in methods}
    return markdown(rows, {metric: TITLES[metric] for metric in metrics}, names)


def markdown(rows: Sequence[Row], metrics: Mapping[str, str], methods: Mapping[str, str]) -> str:
    """A method a line, where something of it is told, and a metric a column, both by their titles: mean [lo, hi]."""
    cells = {(row.method, row.metric): f"{row.mean:.3f} [{row.lo:.3f}, {row.hi:.3f}]" for row in rows}
    present = {name: title for name, title in methods.items() if any(row.method == name for row in rows)}
    lines = [["", *metrics.values()], ["---"] * (len(metrics) + 1)]
    lines += [[title, *(cells.get((method, metric), "") for metric in metrics)] for method, title in present.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
