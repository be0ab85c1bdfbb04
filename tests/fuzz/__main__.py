"""python -m tests.fuzz [READER ...] --minutes N: the targets of this folder for long, a process at a time.

Minutes are of the processor's time at examples, since a machine may be busy; what was done is kept in the folder of
what was found, and the same command goes on from there. A process may take MORE_MEMORY above what it needs to start and
SECONDS for one example; where it dies, the next one goes on with other examples, and the file is kept. Without atheris
the examples are drawn without regard to coverage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.fuzz.examples import Target, target
from tests.fuzz.readers import KINDS

SECONDS = 20
MORE_MEMORY = 2 << 30
SLICE = 120  # seconds that a process is at it, so that all readers come on together
BUSY = 30  # times as long as that a process may take by the clock before it is taken for one that hangs


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(KINDS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader, with those of earlier commands")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where files that break a reader go")
    parser.add_argument("--atheris", action="store_true", help="examples by coverage, with the package atheris")
    parser.add_argument("--child", type=int, metavar="SEED", help=argparse.SUPPRESS)
    return parser.parse_args()


@dataclass(kw_only=True)
class Told:
    """What came of examples, in one process or in many. counts: of `read`, `refused`, `crashes`, `hangs`, `killed`.
    base, peak: MB of memory, at the start and at most."""

    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    base: int = 0
    peak: int = 0
    processes: int = 0

    def add(self, other: Told) -> None:
        self.seconds += other.seconds
        self.counts = dict(Counter(self.counts) + Counter(other.counts))
        self.crashes = sorted({*self.crashes, *other.crashes})
        self.base, self.peak = other.base, max(self.peak, other.peak)
        self.processes += 1

    def row(self, reader: str) -> str:
        """Of the table in docs/reliability.md."""
        of = Counter(self.counts)
        examples = of["read"] + of["refused"] + of["crashes"]
        figures = (examples, of["refused"], of["read"], of["crashes"], of["hangs"] + of["killed"])
        return f"| `{reader}` | {self.seconds / 60:.1f} | {' | '.join(map(str, figures))} | {self.peak - self.base} |"


def main() -> None:
    arguments = arguments_of()
    if arguments.child is not None:
        with target(arguments.readers[0]) as files:
            draw(files, arguments.minutes * 60, arguments.child, arguments.found)
        return
    readers = arguments.readers or [*KINDS]
    kept = {
        reader: arguments.found / reader / ("atheris.json" if arguments.atheris else "told.json") for reader in readers
    }
    told = {reader: Told(**json.loads(path.read_text())) if path.exists() else Told() for reader, path in kept.items()}
    while reader := next_of(told, arguments.minutes * 60 - 1):
        left = min(SLICE, arguments.minutes * 60 - told[reader].seconds)
        told[reader].add(watch(reader, left, told[reader].processes, arguments))
        kept[reader].write_text(json.dumps(asdict(told[reader])))
        print(told[reader].row(reader), flush=True)
    print()
    for reader in readers:
        print(told[reader].row(reader), *told[reader].crashes, sep="\n  ")


def next_of(told: dict[str, Told], seconds: float) -> str | None:
    """The reader that has had the least; None once all have had their time."""
    left = [reader for reader, one in told.items() if one.seconds < seconds]
    return min(left, key=lambda reader: told[reader].seconds, default=None)


def watch(reader: str, seconds: float, seed: int, arguments: argparse.Namespace) -> Told:
    """One process."""
    found = arguments.found / reader
    found.mkdir(parents=True, exist_ok=True)
    module = "tests.fuzz.search" if arguments.atheris else "tests.fuzz"
    command = [sys.executable, "-m", module, reader, "--child", str(seed), "--minutes", str(seconds / 60)]
    with TemporaryDirectory() as own:  # a process that dies leaves its files
        process = subprocess.Popen(
            [*command, "--found", str(found)],
            env=os.environ | {"TMPDIR": own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            output, errors = process.communicate(timeout=BUSY * SLICE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGPROF)
            output, errors = process.communicate()
    rows = [json.loads(line[5:]) for line in output.splitlines() if line.startswith("told ")]
    if not rows:
        raise SystemExit(f"{reader} did not start:\n{errors[-3000:]}")
    told = Told(**rows[-1])
    if process.returncode:
        kind = "hangs" if process.returncode == -signal.SIGPROF else "killed"
        told.counts[kind] = 1
        (found / "current").rename(found / f"{kind}-{seed}")
        print(errors[-1500:], flush=True)
    return told


class Account:
    """What a process has seen so far; a line of it every few seconds, since the process may die at any time."""

    def __init__(self, files: Target, found: Path) -> None:
        self.files, self.found = files, found
        found.mkdir(parents=True, exist_ok=True)
        self.counts: Counter[str] = Counter()
        self.crashes: set[str] = set()
        self.base, self.last, self.start = peak_memory(), 0.0, time.process_time()
        limit = address_space() + MORE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    @property
    def seconds(self) -> float:
        return time.process_time() - self.start

    def example(self, index: int, name: str, data: bytes) -> None:
        (self.found / "current").write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            self.counts[self.files.read(index, name, data)] += 1
        except Exception as error:
            self.counts["crashes"] += 1
            self.keep(error, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
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
        told = Told(
            seconds=self.seconds,
            counts=dict(self.counts),
            crashes=sorted(self.crashes),
            base=self.base,
            peak=peak_memory(),
        )
        print("told", json.dumps(asdict(told)), flush=True)


def draw(files: Target, seconds: float, seed: int, found: Path) -> None:
    """Examples by chance."""
    account, random = Account(files, found), Random(seed)
    account.tell()
    while account.seconds < seconds:
        account.example(*files.drawn(random))
    account.tell()


def peak_memory() -> int:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
