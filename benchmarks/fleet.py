"""What the fleet costs beside the same jobs one after the other, and how many jobs an hour some workers do.

    python -m benchmarks.fleet turns.jsonl --turns 5 --sides plain 1 2 4

Each turn runs every side, a process of its own: `plain` is `train` and `generate` in a loop of one process, a number is
`fleet` with so many workers on this machine. The embedded tiny model, noise for photos, one thread a job. The first
job of each worker, which imports torch, is not counted. Turns are added to the file, and all that it holds is told.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from magicapture_core.__main__ import main as terminal
from magicapture_core.images import save_image

from .machine import describe
from .turns import ratio
from .workload import Conditions

SETTINGS = "accumulate = 1\ninversion.num_steps = {steps}\ntuning.num_steps = {steps}\n"
JOBS = """subjects = "ada"
styles = "ink"
subject_masks = "masks"
style_masks = "masks"
looks = 1
seeds = {seeds}
[pictures]
images = 4
batch = 4
num_steps = 20
[configs.magicapture]
"""
FOLDERS = ("ada", "ink")


def prepare(folder: Path, jobs: int, steps: int) -> None:
    mask = torch.zeros(3, 96, 96)
    mask[:, 24:64, 28:68] = 1
    for number in range(8):
        side, generator = FOLDERS[number % 2], torch.Generator().manual_seed(number)
        save_image(torch.rand(3, 96, 96, generator=generator), folder / side / f"{number}.png")
        save_image(mask, folder / "masks" / side / f"{number}.png")
    settings = SETTINGS.format(steps=steps)
    (folder / "settings.toml").write_text(settings, encoding="utf-8")
    (folder / "jobs.toml").write_text(JOBS.format(seeds=list(range(jobs))) + settings, encoding="utf-8")


def plain(folder: Path, jobs: int) -> dict[str, float]:
    """In this process: seconds and CPU seconds a job, without the first."""
    flags = [part for side, name in zip(("subject", "style"), FOLDERS, strict=True) for part in (
        f"--{side}", str(folder / name), f"--{side}-masks", str(folder / "masks" / name)
    )]  # fmt: skip
    marks: list[tuple[float, float]] = []
    for seed in range(jobs):
        output, name = str(folder / "plain"), f"seed{seed}"
        train = ["--config", str(folder / "settings.toml"), "--look-every", "100000", "--seed", str(seed)]
        run("train", *flags, *train, "--output", output, "--name", name)
        lora = str(folder / "plain" / f"{name}.safetensors")
        run("generate", "--lora", lora, "--output", output, "--num-steps", "20")
        marks.append((time.perf_counter(), time.process_time()))
    (first, first_cpu), (last, last_cpu) = marks[0], marks[-1]
    return {"seconds": (last - first) / (jobs - 1), "cpu_seconds": (last_cpu - first_cpu) / (jobs - 1)}


def run(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert terminal(list(arguments)) == 0


def fleet(folder: Path, jobs: int, workers: int) -> dict[str, float]:
    """Of steady work: seconds a job, CPU seconds of all of Ray's processes and ours, seconds between two jobs in which
    a worker does none."""
    command = [sys.executable, "-m", "magicapture_core", "fleet", str(folder / "jobs.toml"), "--workers", str(workers)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: dict[Path, float] = {}
    cpu: list[float] = []
    while len(seen) < jobs:
        assert process.poll() is None
        for path in set(folder.glob("results/*/*/result.json")).difference(seen):
            seen[path] = time.perf_counter()
            cpu.append(cpu_seconds(process))
        time.sleep(0.02)
    assert process.wait() == 0
    ends, counted = sorted(seen.values()), jobs - workers
    told = [
        json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in sorted(seen, key=lambda path: seen[path])
    ]
    seconds = (ends[-1] - ends[workers - 1]) / counted
    busy = sum(sum(stages.values()) for stages in told[workers:]) / counted / workers
    return {"seconds": seconds, "cpu_seconds": (cpu[-1] - cpu[workers - 1]) / counted, "between": seconds - busy}


def cpu_seconds(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


def tell(turns: list[dict[str, Any]]) -> None:
    for key, value in describe(Conditions(checkpoint="")).items():
        print(f"{key}: {value}")
    sides = list(turns[0]["sides"])
    for side in sides:
        took = [turn["sides"][side]["seconds"] for turn in turns]
        rates = [3600 / seconds for seconds in took]
        cpu = statistics.median(turn["sides"][side]["cpu_seconds"] for turn in turns)
        print(
            f"{side}: {len(turns)} turns, {statistics.median(took):.2f} s a job ({min(took):.2f} to {max(took):.2f}), "
            f"{statistics.median(rates):.0f} jobs an hour, {cpu:.2f} CPU seconds a job"
        )
    for what in ("seconds", "cpu_seconds"):
        ours, theirs = ([turn["sides"][side][what] for turn in turns] for side in ("1", "plain"))
        found = ratio(ours, theirs)
        print(f"1 worker / plain, {what}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
    idle = [turn["sides"]["1"]["between"] for turn in turns]
    share = statistics.median(turn["sides"]["1"]["between"] / turn["sides"]["1"]["seconds"] for turn in turns)
    print(
        f"between two jobs: {statistics.median(idle):.2f} s ({min(idle):.2f} to {max(idle):.2f}), {share:.1%} of a job"
    )


def main() -> None:
    parser = argparse.ArgumentParser("fleet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, metavar="TURNS.jsonl")
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--sides", nargs="+", default=["plain", "1"])
    parser.add_argument("--jobs", type=int, default=4, help="of a worker, the first of which is not counted")
    parser.add_argument("--steps", type=int, default=20, help="of each phase")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        print(json.dumps(plain(arguments.plain, arguments.jobs)))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    before = len(arguments.file.read_text(encoding="utf-8").splitlines()) if arguments.file.exists() else 0
    for turn in range(before, before + arguments.turns):
        sides: dict[str, Any] = {}
        for side in arguments.sides[:: 1 if turn % 2 else -1]:
            with tempfile.TemporaryDirectory() as name:
                jobs = arguments.jobs * (1 if side == "plain" else int(side))
                prepare(Path(name), jobs, arguments.steps)
                if side == "plain":
                    command = [sys.executable, "-m", "benchmarks.fleet", "-", "--plain", name, "--jobs", str(jobs)]
                    sides[side] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                else:
                    sides[side] = fleet(Path(name), jobs, int(side))
        told = {"sides": {side: sides[side] for side in arguments.sides}, "load": os.getloadavg()[0]}
        with arguments.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
    tell([json.loads(line) for line in arguments.file.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
