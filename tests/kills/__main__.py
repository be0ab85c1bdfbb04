"""kill -9, hundreds of times: `python -m tests.kills --kills 500`. The figures stand in docs/reliability.md.

A training, a fleet, PortraitBench's runs or a training in ComfyUI are killed again and again at moments that are drawn,
until they come to their end. After every kill each file under a real name is read; at the end the result is compared
with that of one that nobody killed. `memory` kills nothing: it lets memory run out instead.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from tests.kills import bench, comfyui, fleet, memory, training

KINDS = {
    "training": training.Killed,
    "fleet": fleet.Killed,
    "portraitbench": bench.Killed,
    "comfyui": comfyui.Killed,
    "memory": memory.Killed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS, default="training")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments, counted = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        killed = KINDS[arguments.kind](Path(folder, "whole"))
        while counted["kills"] < arguments.kills:
            counted += killed.until_its_end(Path(folder, str(counted["come to their end"])), moments)
            counted["come to their end"] += 1
            print(dict(counted), flush=True)


if __name__ == "__main__":
    main()
