"""One learning-rate grid for every method, and one of weights for attention refocusing and what takes its place, on
people and styles that no table holds.

Rates are chosen by CSIM + Style. A weight is there to keep the person's word at home: so its leakage is told beside
that sum, and the choice is the reader's. What was chosen is written into METHODS by hand, so that a table's key covers
it. Ablations take the rate of the whole method, so that a difference is the part's alone.
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
WEIGHED = ("mean_then_square", "break_a_scene", "fastcomposer", OURS)
SUM, LEAKAGE = "csim + style", "subject_leakage"

Scores = dict[str, dict[float, dict[str, float]]]  # method -> factor -> SUM and LEAKAGE, means over the pairs


def grid(pairs: int) -> list[Run]:
    """Every run once: of the whole method the middle of both grids is the same."""
    factors = [{"learning_rate_factor": factor, "method": method} for factor in FACTORS for method in TUNED]
    factors += [{"attention_factor": factor, "method": method} for factor in WEIGHT_FACTORS for method in WEIGHED]
    runs = [Run(**factor, pair=pair, seed=0, split="tuning") for pair in range(pairs) for factor in factors]
    return list(dict.fromkeys(runs))


def scores(lines: Iterable[Mapping[str, Any]]) -> dict[str, Scores]:
    """`rates`: by the factor on the preset's learning rates; `weights`: by that on the method's attention weight."""
    rates, weights = [], []
    for line in lines:
        run, figures = Run.of(line), line["figures"]
        if run.method in TUNED and run.attention_factor == 1.0:
            rates.append((run.method, run.learning_rate_factor * METHODS[run.method].learning_rate, figures))
        if run.method in WEIGHED and run.learning_rate_factor == 1.0:
            weights.append((run.method, run.attention_factor, figures))
    return {"rates": _means(rates), "weights": _means(weights)}


def _means(found: Iterable[tuple[str, float, Mapping[str, Any]]]) -> Scores:
    """Leakage over the pairs in which a face was found; without any it is left out."""
    values: dict[str, dict[float, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for method, factor, figures in found:
        told = {SUM: figures["csim"] + figures["style"], LEAKAGE: figures[LEAKAGE]}
        for name, value in told.items():
            if value is not None:
                values[method][factor][name].append(value)
    return {
        method: {factor: {name: mean(v) for name, v in told.items()} for factor, told in factors.items()}
        for method, factors in values.items()
    }


def best(rates: Scores) -> dict[str, float]:
    return {method: max(factors, key=lambda factor: factors[factor][SUM]) for method, factors in rates.items()}


def to_text(found: Mapping[str, Scores]) -> str:
    return json.dumps({**found, "best rates": best(found["rates"])}, indent=1) + "\n"


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
