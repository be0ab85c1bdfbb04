"""python -m tests.fuzz [READER ...] --minutes N: the targets of this folder for long, each in a process of its own.

A process may take MORE_MEMORY above what it needs to start and SECONDS for one example; where it dies, the next one
goes on with other examples, and the file is kept. Without atheris the examples are drawn without regard to coverage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.examples import Target, target
from tests.fuzz.readers import KINDS

SECONDS = 20
MORE_MEMORY = 2 << 30


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(KINDS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where files that break a reader go")
    parser.add_argument("--atheris", action="store_true", help="examples by coverage, with the package atheris")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    if arguments.child:
        with target(arguments.readers[0]) as files:
            draw(files, arguments.minutes * 60, arguments.seed, arguments.found)
        return
    arguments.found.mkdir(parents=True, exist_ok=True)
    for reader in arguments.readers or KINDS:
        print(f"{reader}: {watch(reader, arguments)}", flush=True)


def watch(reader: str, arguments: argparse.Namespace) -> str:
    """Processes one after the other until the time is over -> what they told, in one line."""
    told: Counter[str] = Counter()
    crashes: set[str] = set()
    peak = base = number = 0
    start = time.monotonic()
    left = arguments.minutes * 60
    module = "tests.fuzz.search" if arguments.atheris else "tests.fuzz"
    while left > 1:
        number += 1
        command = [sys.executable, "-m", module, reader, "--child", "--minutes", str(left / 60)]
        command += ["--seed", str(arguments.seed * 1000 + number), "--found", str(arguments.found / reader)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        rows = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("told ")]
        for row in rows[-1:]:
            told.update(row["counts"])
            crashes |= set(row["crashes"])
            peak, base = max(peak, row["peak"]), row["base"]
        if not rows:
            raise SystemExit(f"{reader} did not start:\n{done.stderr[-3000:]}")
        if done.returncode:
            kind = "hangs" if done.returncode == -signal.SIGALRM else "killed"
            told[kind] += 1
            current = arguments.found / reader / "current"
            current.rename(current.with_name(f"{kind}-{arguments.seed}-{number}"))
            print(done.stderr[-1500:], flush=True)
        left = arguments.minutes * 60 - (time.monotonic() - start)
    for crash in sorted(crashes):
        print(f"  {crash}")
    return (
        f"{(time.monotonic() - start) / 60:.1f} minutes, {told['read'] + told['refused'] + told['crashes']} examples, "
        f"{told['refused']} refused, {told['read']} read, {told['crashes']} crashes of {len(crashes)} kinds, "
        f"{told['hangs']} hangs, {told['killed']} killed, peak {peak} MB (at the start {base} MB)"
    )


class Account:
    """What a process has seen so far; a line of it every few seconds, since the process may die at any time."""

    def __init__(self, files: Target, found: Path) -> None:
        self.files, self.found = files, found
        found.mkdir(parents=True, exist_ok=True)
        self.counts: Counter[str] = Counter()
        self.crashes: set[str] = set()
        self.base, self.last = peak_memory(), 0.0
        limit = address_space() + MORE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def example(self, index: int, name: str, data: bytes) -> None:
        (self.found / "current").write_bytes(data)
        signal.alarm(SECONDS)
        try:
            self.counts[self.files.read(index, name, data)] += 1
        except Exception as error:
            self.counts["crashes"] += 1
            self.keep(error, data)
        signal.alarm(0)
        if time.monotonic() - self.last > 2:
            self.tell()

    def keep(self, error: Exception, data: bytes) -> None:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "magicapture_core" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        said = re.sub(r"[0-9]+", "#", str(error))[:100].split("\n")[0]
        kind = ascii(f"{place} {type(error).__name__}: {said}")
        if kind not in self.crashes:
            self.crashes.add(kind)
            (self.found / f"crash-{hashlib.sha256(kind.encode()).hexdigest()[:12]}").write_bytes(data)

    def tell(self) -> None:
        self.last = time.monotonic()
        told: dict[str, Any] = {"counts": self.counts, "crashes": sorted(self.crashes)}
        print("told", json.dumps({**told, "peak": peak_memory(), "base": self.base}), flush=True)


def draw(files: Target, seconds: float, seed: int, found: Path) -> None:
    """Examples by chance."""
    account, random, end = Account(files, found), Random(seed), time.monotonic() + seconds
    account.tell()
    while time.monotonic() < end:
        account.example(*files.drawn(random))
    account.tell()


def peak_memory() -> int:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
