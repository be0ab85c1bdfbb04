"""The terminal's `fleet`: a jobs file in, all its jobs done, one table of what came of them."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from ..terminal import Result
from ..train_command import Cancelled, stoppable
from ..types import MagiCaptureError
from .jobs import Job, read_jobs
from .scheduler import LOCAL, Fleet, Stopped, spread
from .storage import Place, lock_folder, locked
from .table import Table
from .worker import Told, run_job


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("jobs", type=Path, metavar="JOBS.toml", help="people, styles and settings; see docs/fleet.md")
    parser.add_argument("--results", metavar="WHERE", help="instead of the file's: a folder or an fsspec address")
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS") or LOCAL,
        metavar="HOST:PORT",
        help="of a Ray cluster; by default RAY_ADDRESS, or without it a Ray of this machine alone",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="jobs at a time on this machine; one a core by default"
    )
    parser.add_argument("--plan", action="store_true", help="say which jobs there are and which are done; run none")


def fleet(arguments: Namespace) -> Result:
    file, jobs = read_jobs(arguments.jobs)
    results = arguments.results or file.results
    if "://" not in results:
        results = str((Path.cwd() if arguments.results else arguments.jobs.absolute().parent) / results)
    check_workers(arguments)
    kind = Fleet(
        address=arguments.address, workers=arguments.workers, cpus=file.cpus, gpus=file.gpus, retries=file.retries
    )
    if arguments.plan:
        told = finished(jobs, results)
        waiting = [job.name for job in jobs if job.name not in told]
        return {"results": results, "done": list(told), "waiting": waiting}
    busy = f"{results}: another fleet command works on these results; wait for it, or give --results"
    with locked(lock_folder(results), 0, busy):
        before = finished(jobs, results)
        made, failed = run([job for job in jobs if job.name not in before], len(before), results, kind)
    told = before | made
    return {
        "results": results,
        "done_before": len(before),
        "jobs": [row(job, told[job.name]) for job in jobs if job.name in told],
        "means": means(told.values()),
        "failed": [{"job": name, "reason": reason} for name, reason in failed.items()],
    }


def check_workers(arguments: Namespace) -> None:
    if arguments.workers is not None and arguments.workers < 1:
        raise MagiCaptureError("--workers: at least 1")
    if arguments.workers is not None and arguments.address != LOCAL:
        raise MagiCaptureError("--workers: is for this machine alone; a cluster runs what its cores and cards allow")


def finished(jobs: Sequence[Job], results: str) -> dict[str, Told]:
    """The results that are there already, by the job's name."""
    return {job.name: told for job in jobs if (told := Place(results, job.folder).read_result(job.keys.all))}


def run(jobs: Sequence[Job], before: int, results: str, kind: Fleet) -> tuple[dict[str, Told], dict[str, str]]:
    """What the jobs tell, and of those that failed the reason, by name; the table on standard error.

    Raises Cancelled where the user stopped.
    """
    made: dict[str, Told] = {}
    failed: dict[str, str] = {}
    table = Table([job.name for job in jobs], before, sys.stderr)
    with stoppable() as stopped:
        work = partial(run_job, results=results)
        for end in spread(jobs, work, kind, name=lambda job: job.name, look=table.look, stopped=stopped):
            if isinstance(end.error, Stopped):
                continue
            if end.error is None:
                made[end.item.name] = end.made
            else:
                failed[end.item.name] = reason(end.error)
            table.end(end.item.name, failed.get(end.item.name, ""))
        if stopped():
            raise Cancelled("What is finished stays, states of the others are kept; the same command goes on")
    sys.stderr.write(f"{table.summary()}\n")
    return made, failed


def reason(error: Exception) -> str:
    """One line; with its kind where it is none of ours."""
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, MagiCaptureError) else f"{type(error).__name__}: {text}"


def row(job: Job, told: Told) -> dict[str, Any]:
    return {"job": job.name, "folder": job.folder} | {name: told[name] for name in ("loss", "seconds", "figures")}


def means(told: Iterable[Told]) -> dict[str, dict[str, float]]:
    """By method, of every figure over the jobs that have it: the rows of the paper's table."""
    figures: dict[str, dict[str, list[float]]] = {}
    for one in told:
        for name, value in one["figures"].items():
            figures.setdefault(one["method"], {}).setdefault(name, []).append(value)
    return {method: {name: round(mean(values), 4) for name, values in of.items()} for method, of in figures.items()}
