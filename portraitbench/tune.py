"""One learning-rate grid for every method and one of weights for the rivals' attention losses, on people and styles
that no table holds; the best by CSIM + Style.

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
WEIGHT_FACTORS = (0.3, 1.0, 3.0)
WEIGHED = ("mean_then_square", "break_a_scene", "fastcomposer")


def grid(pairs: int) -> list[Run]:
    factors = [{"learning_rate_factor": factor, "method": method} for factor in FACTORS for method in TUNED]
    factors += [{"attention_factor": factor, "method": method} for factor in WEIGHT_FACTORS for method in WEIGHED]
    return [Run(**factor, pair=pair, seed=0, split="tuning") for pair in range(pairs) for factor in factors]


def scores(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """method -> factor on the preset's learning rates, of an attention loss on the method's weight -> the mean of
    CSIM + Style."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        method, figures = line["method"], line["figures"]
        factor = (
            line["attention_factor"]
            if method in WEIGHED
            else line["learning_rate_factor"] * METHODS[method].learning_rate
        )
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
    runs = [(line, Run.of(line)) for line in lines]
    return [
        dict(line)
        for line, run in runs
        if run.split == "test" and run.learning_rate_factor == run.attention_factor == 1.0
    ]
