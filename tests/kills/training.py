"""A training that is killed before a touch of the disk, or a part of a second after a step, both drawn."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from tests.core.test_kill import Life, assert_little_is_lost, assert_whole, live, state_step
from tests.killed import NUM_STEPS, train
from tests.kills.files import read_all


class Killed:
    def __init__(self, whole: Path) -> None:
        self.whole = whole
        self.touches = live(train, whole).touches

    def until_its_end(self, folder: Path, moments: random.Random) -> Counter[str]:
        """How often it was killed, and of that while the result was written."""
        counted = Counter[str]()
        while (life := self.one_life(folder, moments, before := state_step(folder))).was_killed:
            counted += Counter({"kills": 1, "while the result is written": int(life.saving > 0)})
            counted += Counter({"files read": read_all(folder)})
            assert_little_is_lost(folder, life, before)
        assert_whole(folder, self.whole)
        return counted

    def one_life(self, folder: Path, moments: random.Random, before: int) -> Life:
        if before == NUM_STEPS or moments.random() < 0.5:
            return live(train, folder, kill_at=moments.randint(1, self.touches))
        return live(train, folder, seconds_after=(moments.randint(before + 1, NUM_STEPS), moments.uniform(0, 0.2)))
