"""One learning-rate grid for every method, on people and styles that no table holds; the best by CSIM + Style.

Ablations take the rate of the whole method, so that a difference is the part's alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from magicapture_core.files import write_atomic

from .methods import OURS
from .runs import Run, lines_file, read_lines

FACTORS = (0.5, 1.0, 2.0)
TUNED = ("truth", "textual_inversion", "dreambooth", "custom_diffusion", OURS)
CHOSEN = Path(__file__).parent / "results" / "learning_rates.json"


def grid(pairs: int) -> list[Run]:
    return [
        Run(method=method, pair=pair, seed=0, split="tuning", learning_rate_factor=factor)
        for pair in range(pairs)
        for factor in FACTORS
        for method in TUNED
    ]


def scores(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """method -> factor -> the mean of CSIM + Style."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        figures = line["figures"]
        found[line["method"]][line["learning_rate_factor"]].append(figures["csim"] + figures["style"])
    return {method: {factor: mean(v) for factor, v in factors.items()} for method, factors in found.items()}


def choose(found: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    return {method: max(factors, key=lambda factor: factors[factor]) for method, factors in found.items()}


def save_choice(found: Mapping[str, Mapping[float, float]]) -> Path:
    text = json.dumps({"scores": found, "chosen": choose(found)}, indent=1)
    return write_atomic(CHOSEN, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def chosen_factor(method: str) -> float:
    """Of the table's runs: what the grid chose for the method, or for the whole method of an ablation."""
    chosen = json.loads(CHOSEN.read_text(encoding="utf-8"))["chosen"] if CHOSEN.exists() else {}
    return chosen.get(method if method in TUNED else OURS, 1.0)


def table_runs(methods: Sequence[str], pairs: int, seeds: int) -> list[Run]:
    return [
        Run(method=method, pair=pair, seed=seed, learning_rate_factor=chosen_factor(method))
        for pair in range(pairs)
        for seed in range(seeds)
        for method in methods
    ]


def table_lines() -> list[dict[str, Any]]:
    """All finished runs that belong to the table."""
    return [
        line
        for line in read_lines(lines_file())
        if line["split"] == "test" and line["learning_rate_factor"] == chosen_factor(line["method"])
    ]
