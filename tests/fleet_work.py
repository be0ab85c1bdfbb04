"""What the fleet's tests give to workers: functions that these can import by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from magicapture_core import fitting
from magicapture_core.fleet.jobs import Job
from magicapture_core.fleet.worker import Report, Told, run_job
from magicapture_core.types import MagiCaptureError

KILLED_AT = 5


def killed_once(task: tuple[Job, str, str], report: Report) -> Told:
    """A job whose worker kills itself as `kill -9` does, in the midst of its training or of its pictures, once."""
    job, results, stage = task
    fitting.STATE_EVERY = 2
    mark = Path(f"{results}-was-killed")

    def told(at: str, step: int, num_steps: int) -> None:
        report(at, step, num_steps)
        if at == stage and step == (KILLED_AT if stage == "train" else 1) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return run_job(job, told, results)


def keeping_often(job: Job, report: Report, results: str) -> Told:
    """A job with a state after every other step."""
    fitting.STATE_EVERY = 2
    return run_job(job, report, results)


def end_somehow(item: str, report: Report) -> None:
    """`bad` and `odd` fail, each in its way; any other waits to be stopped."""
    if item == "bad":
        raise MagiCaptureError("bad: take another")
    if item == "odd":
        raise RuntimeError("odd")
    while True:
        report("waits", 0, 1)
        time.sleep(0.05)


def square(number: int) -> dict[str, Any]:
    return {"number": number, "figures": {"square": number * number}}
