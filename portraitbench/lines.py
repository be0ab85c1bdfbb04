"""Finished runs as JSON lines in files named by a key of all that figures depend on, and the runs that are missing yet.

A table can grow over days and never mixes what does not belong together. Knows nothing of what a run is: one is any
hashable value that can be pickled, and a line is what measuring it gives.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from magicapture_core.fleet.scheduler import LOCAL, Fleet, Report, spread
from magicapture_core.types import MagiCaptureError

RAY = "ray"
Run = TypeVar("Run")
Line = Mapping[str, Any]


def key_of(paths: Iterable[Path]) -> str:
    """A hash of the files' content, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def fullest_key(folder: Path, kind: str, today: str) -> str:
    """Of files KIND-KEY.jsonl: `today`, or where there is nothing of it yet, the key with the most lines; or none."""
    measured = {path.stem.removeprefix(f"{kind}-"): len(read_lines(path)) for path in folder.glob(f"{kind}-*.jsonl")}
    return today if today in measured else max(measured, key=measured.__getitem__, default="")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Finished runs; a line that was cut off is none."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def add_line(path: Path, line: Line) -> None:
    """In one write at the file's end, so that several processes may add theirs; apart from half a line that a full disk
    has left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        file.seek(max(0, file.tell() - 1))
        start = "" if file.read() in (b"", b"\n") else "\n"
        file.write((start + json.dumps(line) + "\n").encode())


def to_json(figure: float) -> float | None:
    return None if math.isnan(figure) else round(figure, 5)


def run_missing(
    runs: Sequence[Run], measure: Callable[[Run], Line], path: Path, of: Callable[[Line], Run], workers: int | str = 1
) -> Iterator[Line]:
    """Each run's line: those that `path` has first, `of` which it tells the run, then the others as they are measured.
    workers: as for `measuring`.

    Raises MagiCaptureError for a run that failed, after all others are done.
    """
    kept = {of(line): line for line in read_lines(path)}
    yield from (kept[run] for run in runs if run in kept)
    failed: list[tuple[Run, MagiCaptureError]] = []
    for run, measured in measuring([run for run in runs if run not in kept], measure, workers):
        try:
            line = measured()
        except MagiCaptureError as error:
            failed.append((run, error))
            continue
        add_line(path, line)
        yield line
    if failed:
        run, error = failed[0]
        raise MagiCaptureError(f"{len(failed)} of {len(runs)} runs failed, the first is {run}: {error}") from error


def measuring(
    runs: Sequence[Run], measure: Callable[[Run], Line], workers: int | str
) -> Iterator[tuple[Run, Callable[[], Line]]]:
    """Every run with what gives its line: here, one after the other, or in order of completion from several processes
    of one thread each, which two cores do faster than one process of two threads. workers: how many; RAY for a Ray of
    this machine, or the address of a cluster."""
    if isinstance(workers, str):
        fleet = Fleet(address=LOCAL if workers == RAY else workers, gpus=0)
        yield from ((end.item, end.get) for end in spread(runs, partial(_unattended, measure), fleet))
        return
    if workers == 1:
        yield from ((run, partial(measure, run)) for run in runs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(measure, run): run for run in runs}
        yield from ((futures[future], future.result) for future in as_completed(futures))


def _unattended(measure: Callable[[Run], Line], run: Run, report: Report) -> Line:
    """In a worker of Ray, who hears nothing until the run is done."""
    return measure(run)
