"""One learning-rate grid for every method, on people and styles that no table holds; the best by CSIM + Style.

What it finds is written into METHODS by hand, so that a table's key covers it. Ablations take the rate of the whole
method, so that a difference is the part's alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from .methods import METHODS, OURS
from .runs import Run

FACTORS = (0.5, 1.0, 2.0)
TUNED = ("truth", "textual_inversion", "dreambooth", "custom_diffusion", OURS)


def grid(pairs: int) -> list[Run]:
    return [
        Run(method=method, pair=pair, seed=0, split="tuning", learning_rate_factor=factor)
        for pair in range(pairs)
        for factor in FACTORS
        for method in TUNED
    ]


def scores(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """method -> factor on the preset's learning rates -> the mean of CSIM + Style."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        method, figures = line["method"], line["figures"]
        factor = line["learning_rate_factor"] * METHODS[method].learning_rate
        found[method][factor].append(figures["csim"] + figures["style"])
    return {method: {factor: mean(v) for factor, v in factors.items()} for method, factors in found.items()}


def best(found: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    return {method: max(factors, key=lambda factor: factors[factor]) for method, factors in found.items()}


def to_text(found: Mapping[str, Mapping[float, float]]) -> str:
    return json.dumps({"scores": found, "best": best(found)}, indent=1) + "\n"


def table_runs(methods: Sequence[str], pairs: int, seeds: int) -> list[Run]:
    return [
        Run(method=method, pair=pair, seed=seed) for pair in range(pairs) for seed in range(seeds) for method in methods
    ]


def table_lines(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of the finished runs that belong to the table."""
    return [dict(line) for line in lines if line["split"] == "test" and line["learning_rate_factor"] == 1.0]
