"""PortraitBench's runs, killed before a touch of the disk or some seconds after one of them was done, both drawn."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from portraitbench.lines import read_lines
from tests.core.test_kill import Life, live
from tests.killed import measure
from tests.kills.files import read_all

SECONDS = 8.0  # about what one run takes


class Killed:
    def __init__(self, whole: Path) -> None:
        self.touches = live(measure, whole).touches
        self.lines = lines_of(whole)

    def until_its_end(self, folder: Path, moments: random.Random) -> Counter[str]:
        """How often they were killed. Every line that was told of stays, and is measured once."""
        counted, done = Counter[str](), []
        while (life := self.one_life(folder, moments, len(done))).was_killed:
            before, done = done, lines_of(folder)
            assert done[: len(before)] == before
            assert len(done) - max(life.steps, len(before)) in (0, 1)
            counted += Counter({"kills": 1, "files read": read_all(folder)})
        assert lines_of(folder) == self.lines
        return counted

    def one_life(self, folder: Path, moments: random.Random, done: int) -> Life:
        if moments.random() < 0.5:
            return live(measure, folder, kill_at=moments.randint(1, self.touches))
        return live(measure, folder, seconds_after=(done, moments.uniform(0, SECONDS)))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "runs.jsonl")
