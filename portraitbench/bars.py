"""The bars of the bench: what MagiCapture must show against its rivals and its own ablations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .methods import OURS
from .table import by_pair, difference

RIVALS = ("textual_inversion", "dreambooth", "custom_diffusion")
NUM_PAIRS = 16  # what a comparison needs; of fewer it is not measured
STYLE_SLACK = 0.02
LEAKAGE_SHARE = 0.5
COMPOSED_GAIN = 0.05
CHANCE_SLACK = 0.05


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure and what it must reach, or exceed; without a bound it is only told. None, not measured, holds none."""

    name: str
    figure: float | None
    least: float | None = None
    exceeds: bool = False
    unit: str = ""

    @property
    def holds(self) -> bool:
        if self.least is None:
            return True
        if self.figure is None:
            return False
        return self.figure > self.least if self.exceeds else self.figure >= self.least

    def __str__(self) -> str:
        figure = "not measured" if self.figure is None else f"{self.figure:.3f}"
        line = f"{self.name:64} {figure:>12} {self.unit}"
        if self.least is None:
            return line
        return f"{line}  ({'>' if self.exceeds else '>='} {self.least:g}: {'holds' if self.holds else 'MISSED'})"


def bars(lines: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    def figure(method: str, metric: str, part: str, of: str = OURS) -> float | None:
        row = difference(lines, metric, method, of)
        return getattr(row, part) if row and row.n >= NUM_PAIRS else None

    for rival in RIVALS:
        name = f"CSIM ahead of {rival}, lower end of 95 %"
        yield Bar(name=name, figure=figure(rival, "csim", "lo"), least=0.0, exceeds=True)
    style = [gap for rival in RIVALS if (gap := figure(rival, "style", "mean")) is not None]
    yield Bar(name="Style against the best rival", figure=min(style, default=None), least=-STYLE_SLACK)
    yield Bar(
        name="share of the person's word's leakage that refocusing takes away",
        figure=leakage_taken(lines) if figure("without_ar", "subject_leakage", "n") else None,
        least=LEAKAGE_SHARE,
    )
    yield Bar(
        name="CSIM of the split style alone: chance less that, lower end",
        figure=figure("split", "style_only_csim", "lo", of="untouched"),
        least=-CHANCE_SLACK,
    )
    yield Bar(name="CSIM that composed prompts add", figure=figure("without_cp", "csim", "mean"), least=COMPOSED_GAIN)


def leakage_taken(lines: Sequence[Mapping[str, Any]]) -> float:
    """Over the pairs in which both found a face."""
    leaks = by_pair(lines, "subject_leakage")
    ours, without = leaks[OURS], leaks["without_ar"]
    shared = sorted(ours.keys() & without.keys())
    return float(1 - np.mean([ours[pair] for pair in shared]) / np.mean([without[pair] for pair in shared]))
