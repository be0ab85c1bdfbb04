"""A fleet of two workers, of which one, or the command, or the head of its Ray, is killed at a moment that is drawn."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from magicapture_core.__main__ import main
from magicapture_core.fleet import command
from tests.core.test_fleet import JOBS, made, make_people, write_jobs
from tests.fleet_work import keeping_often
from tests.kills.files import read_all

SECONDS = 15.0  # a worker begins its job after about 5, and takes as long for it
DEADLINE = 300.0  # seconds in which a command comes to its end, or is taken for one that hangs
VICTIMS = {"worker": 8, "command": 1, "head": 1}  # how often each is drawn
Seen = dict[Path, tuple[int, bytes]]


class Killed:
    def __init__(self, whole: Path) -> None:
        assert run(whole).wait() == 0
        self.made = made(whole / "results")

    def until_its_end(self, folder: Path, moments: random.Random) -> Counter[str]:
        """How often something was killed. What is finished stays as it is; in the end all is as if nothing had been."""
        finished: Seen = {}
        counted, code = Counter[str](), -1
        while code != 0:
            process = run(folder)
            while kill_one(process, moments, counted):
                counted += Counter({"kills": 1, "files read": read_all(folder / "results")})
                finished = still(finished, folder)
            code = process.wait()
            assert code in (0, 2, -signal.SIGKILL)
        still(finished, folder)
        now = made(folder / "results")
        assert now == self.made, [
            name for name in now.keys() | self.made.keys() if now.get(name) != self.made.get(name)
        ]
        return counted


def run(folder: Path) -> subprocess.Popen[bytes]:
    if not folder.exists():
        make_people(folder, people=("ada", "bob", "eve"))
        write_jobs(folder, "retries = 100\n" + JOBS.replace("num_steps = 4", "num_steps = 8"))
    return subprocess.Popen([sys.executable, "-m", __spec__.name, str(folder / "jobs.toml")], stdout=subprocess.DEVNULL)


def kill_one(process: subprocess.Popen[bytes], moments: random.Random, counted: Counter[str]) -> bool:
    """False where the command came to its end before."""
    kind = moments.choices([*VICTIMS], [*VICTIMS.values()])[0]
    deadline = time.monotonic() + DEADLINE
    is_due = float("inf")
    while process.poll() is None:
        assert time.monotonic() < deadline, "it hangs"
        found = victims(process)
        if found["worker"] and is_due == float("inf"):
            is_due = time.monotonic() + moments.uniform(0, SECONDS)
        if time.monotonic() >= is_due and found[kind]:
            moments.choice(found[kind]).kill()
            counted[kind] += 1
            return True
        time.sleep(0.05)
    return False


def victims(process: subprocess.Popen[bytes]) -> dict[str, list[psutil.Process]]:
    """What runs of each kind."""
    whole = psutil.Process(process.pid)
    found: dict[str, list[psutil.Process]] = {"worker": [], "command": [whole], "head": []}
    for child in whole.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            name = " ".join(child.cmdline()[:1])
            found["worker"] += [child] * name.startswith("ray::attempt")
            found["head"] += [child] * name.endswith(("gcs_server", "raylet"))
    return found


def still(finished: Seen, folder: Path) -> Seen:
    """The files of all finished jobs. Those that were there are the same."""
    jobs = [path.parent for path in folder.glob("results/*/*/result.json")]
    files = [path for job in jobs for path in job.rglob("*") if path.is_file() and not path.name.startswith(".")]
    now = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    assert finished.items() <= now.items()
    return now


if __name__ == "__main__":
    command.run_job = keeping_often
    sys.exit(main(["fleet", sys.argv[1], "--workers", "2", "--json"]))
