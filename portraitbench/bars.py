"""The bars of the bench: what MagiCapture must show against its rivals and its own ablations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .methods import OURS
from .table import differences, means

RIVALS = ("textual_inversion", "dreambooth", "custom_diffusion")
STYLE_SLACK = 0.02
LEAKAGE_SHARE = 0.5
COMPOSED_GAIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure and what it must reach (is_above: exceed); a figure of None was not measured, and holds nothing."""

    name: str
    figure: float | None
    least: float
    is_above: bool = False

    @property
    def holds(self) -> bool:
        if self.figure is None:
            return False
        return self.figure > self.least if self.is_above else self.figure >= self.least

    def __str__(self) -> str:
        figure = "not measured" if self.figure is None else f"{self.figure:.3f}"
        sign, verdict = ">" if self.is_above else ">=", "holds" if self.holds else "MISSED"
        return f"{self.name:64} {figure:>12}  ({sign} {self.least:g}: {verdict})"


def bars(lines: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    mean = {(row.method, row.metric): row.mean for row in means(lines)}
    ahead = {(row.method, row.metric): row for row in differences(lines)}
    for rival in RIVALS:
        row = ahead.get((rival, "csim"))
        yield Bar(
            name=f"CSIM ahead of {rival}, lower end of 95 %", figure=row.lo if row else None, least=0.0, is_above=True
        )
    style = [mean[rival, "style"] for rival in RIVALS if (rival, "style") in mean]
    ours = mean.get((OURS, "style"))
    yield Bar(
        name="Style against the best rival",
        figure=ours - max(style) if ours is not None and style else None,
        least=-STYLE_SLACK,
    )
    leaks, leaks_without = (mean.get((method, "subject_leakage")) for method in (OURS, "without_ar"))
    yield Bar(
        name="share of the person's word's leakage that refocusing takes away",
        figure=1 - leaks / leaks_without if leaks is not None and leaks_without else None,
        least=LEAKAGE_SHARE,
    )
    row = ahead.get(("without_cp", "csim"))
    yield Bar(name="CSIM that composed prompts add", figure=row.mean if row else None, least=COMPOSED_GAIN)
