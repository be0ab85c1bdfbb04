"""A mean and how certain it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_BOOTSTRAPS = 10_000
AT_ONCE = 100  # draws held in memory


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the middle 95 % of the means of as many values drawn from them again and again, always the same way."""
    sample, draw = np.asarray(values, float), np.random.default_rng(0)
    parts = [draw.choice(sample, (AT_ONCE, len(sample))).mean(1) for _ in range(NUM_BOOTSTRAPS // AT_ONCE)]
    low, high = np.quantile(np.concatenate(parts), (0.025, 0.975))
    return float(sample.mean()), float(low), float(high)
