"""kill -9, hundreds of times: `python -m tests.kills --kills 500`. The figures stand in docs/reliability.md.

A training is killed again and again, before a touch of the disk or a part of a second after a step, both drawn, until
it comes to its end. After every kill each file under a real name is read; at the end the result is compared with that
of a training that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from tests.core.test_kill import Life, assert_little_is_lost, assert_whole, live, state_step
from tests.killed import NUM_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments, counted = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        touches = live(whole).touches
        while counted["kills"] < arguments.kills:
            trained = Path(folder, str(counted["trainings"]))
            counted += until_its_end(trained, touches, moments)
            assert_whole(trained, whole)
            print(dict(counted), flush=True)


def until_its_end(folder: Path, touches: int, moments: random.Random) -> Counter[str]:
    """Kills of one training, and how often it was between steps, while a state or while the result was written."""
    counted = Counter(trainings=1)
    while (life := one_life(folder, touches, moments, before := state_step(folder))).was_killed:
        counted += Counter(kills=1)
        counted += Counter({"while the result is written": int(life.saving > 0)})
        counted += Counter({"files read": read_all(folder)})
        assert_little_is_lost(folder, life, before)
    return counted


def one_life(folder: Path, touches: int, moments: random.Random, before: int) -> Life:
    if moments.random() < 0.5:
        return live(folder, kill_at=moments.randint(1, touches))
    return live(folder, seconds_after=(moments.randint(before + 1, NUM_STEPS), moments.uniform(0, 0.2)))


def read_all(folder: Path) -> int:
    """How many files there are under a real name, each of which is whole."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in files:
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
    return len(files)


if __name__ == "__main__":
    main()
