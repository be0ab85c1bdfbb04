"""Any work on Ray: one task an item, with resources and retries, and what the workers tell while they are at it.

Knows nothing of jobs: an item is whatever can be pickled, and its work a function that can be imported on every
machine. A Ray of its own listens on this machine alone, with a token that only its processes know.
"""

from __future__ import annotations

import math
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..types import MagiCaptureError

Item = TypeVar("Item")
LOCAL = "local"
TOLD_EVERY = 1.0  # seconds between two words of a worker, and between two looks at all of them
LOST_AFTER = 30.0  # seconds until Ray, when nothing of it answers, is taken for lost; at 60 it ends our process
OBJECT_STORE = 100 * 2**20  # bytes; what travels is small
# Before Ray is imported: no usage statistics, loopback alone, no word on cards that a job without any does not see
LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
}


class Stopped(Exception):
    """The user asked all workers to stop."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Where work goes. address: of a Ray cluster, or LOCAL for one of our own that ends with the work. workers: of
    LOCAL, at a time; as many as there are cores or cards by default. cpus, gpus: of one item; gpus None = one where
    there are any. retries: after a worker was lost, or an error that may pass."""

    address: str = LOCAL
    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None
    retries: int = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a worker told last. attempt: 1 for the first. silent: seconds since then."""

    stage: str
    step: int
    num_steps: int
    attempt: int
    where: str
    silent: float = 0.0


@dataclass(frozen=True, kw_only=True)
class End(Generic[Item]):
    """What came of an item: what its work returned, or why there is nothing."""

    item: Item
    made: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """What was made. Raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return self.made


class Board:
    """Where workers tell how far they are, and hear whether to stop; an actor."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.told: dict[str, float] = {}
        self.stopping = False

    def begin(self, name: str, where: str) -> bool:
        attempt = self.rows[name].attempt + 1 if name in self.rows else 1
        return self._put(name, Row(stage="starts", step=0, num_steps=0, attempt=attempt, where=where))

    def tell(self, name: str, where: str, stage: str, step: int, num_steps: int) -> bool:
        attempt = self.rows[name].attempt if name in self.rows else 1  # a board that was lost begins empty
        return self._put(name, Row(stage=stage, step=step, num_steps=num_steps, attempt=attempt, where=where))

    def _put(self, name: str, row: Row) -> bool:
        self.rows[name], self.told[name] = row, time.monotonic()
        return self.stopping

    def read(self) -> dict[str, Row]:
        return {name: replace(row, silent=time.monotonic() - self.told[name]) for name, row in self.rows.items()}

    def stop(self) -> None:
        self.stopping = True


class Report:
    """A worker's word to the board, at most every TOLD_EVERY, for which no step waits. Raises Stopped.

    It asks futures, not Ray: who waits in `ray.get` gives a core away, on which another task would begin.
    """

    def __init__(self, board: Any, name: str) -> None:
        self.board, self.name, self.where = board, name, f"{platform.node()}, process {os.getpid()}"
        self._answer = board.begin.remote(name, self.where).future()
        self._next = 0.0

    def __call__(self, stage: str, step: int, num_steps: int) -> None:
        if time.monotonic() < self._next or not self._answer.done():
            return
        self._next = time.monotonic() + TOLD_EVERY
        if self._answer.result():
            raise Stopped
        self._answer = self.board.tell.remote(self.name, self.where, stage, step, num_steps).future()


def attempt(work: Callable[[Item, Report], Any], item: Item, name: str, board: Any) -> End[Item]:
    """In a worker: what the user can mend, and a stop, are an end; any other error is Ray's to try again."""
    try:
        return End(item=item, made=work(item, Report(board, name)))
    except (MagiCaptureError, Stopped) as error:
        return End(item=item, error=error)


def spread(
    items: Sequence[Item],
    work: Callable[[Item, Report], Any],
    fleet: Fleet,
    *,
    name: Callable[[Item], str] = str,
    look: Callable[[dict[str, Row]], None] = lambda rows: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[End[Item]]:
    """The end of every item, in order of completion. look: gets what the workers told, by `name`, every second.
    stopped: asked as often; then workers stop at their next word, nothing begins, and what had not ended does with
    Stopped.

    Raises MagiCaptureError without Ray, for a cluster that is not there, and for one that is lost.
    """
    if not items:
        return
    with running(fleet) as ray:
        options = {"num_cpus": fleet.cpus, "num_gpus": gpus_of_one(ray, fleet)}
        task = ray.remote(attempt).options(**options, max_retries=fleet.retries, retry_exceptions=True)
        board = open_board(ray)
        waiting = {task.remote(work, item, name(item), board): item for item in items}
        while waiting:
            ended, _ = ray.wait(list(waiting), timeout=TOLD_EVERY)
            for ref in ended:
                yield end_of(ray, ref, waiting.pop(ref))
            check_own_processes(ray)
            look(rows := ask(ray, board.read))
            if stopped():
                ask(ray, board.stop)
                for ref in (ref for ref, item in waiting.items() if name(item) not in rows):
                    ray.cancel(ref)


def gpus_of_one(ray: Any, fleet: Fleet) -> float:
    """Raises MagiCaptureError for more cards than a Ray of our own could ever have."""
    found = ray.cluster_resources().get("GPU", 0)
    gpus = float(found > 0) if fleet.gpus is None else fleet.gpus
    if fleet.address == LOCAL and gpus > found:
        raise MagiCaptureError(f"gpus {gpus:g}: this machine has {found:g}; set gpus, or give --address of a cluster")
    return gpus


def open_board(ray: Any) -> Any:
    """Where the command is, and again where its process is lost."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, **lasting).remote()


def ask(ray: Any, method: Any) -> Any:
    """The board's answer. Raises MagiCaptureError where Ray is lost."""
    try:
        return ray.get(method.remote(), timeout=LOST_AFTER)
    except ray.exceptions.RayError as error:
        raise lost(_first_line(error)) from error


def check_own_processes(ray: Any) -> None:
    """Raises MagiCaptureError where one of the Ray that we have started has died: without its head, workers and board
    go on for a minute, and then Ray ends our process without a word of ours."""
    dead = {name for name, _ in ray._private.worker._global_node.dead_processes()}
    if dead & {"gcs_server", "raylet"}:
        raise lost("a process of its head has ended")


def lost(reason: str) -> MagiCaptureError:
    return MagiCaptureError(f"Ray is lost ({reason}); the same command goes on")


def end_of(ray: Any, ref: Any, item: Item) -> End[Item]:
    try:
        return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return End(item=item, error=Stopped())
    except ray.exceptions.RayTaskError as error:
        return End(item=item, error=error.cause)
    except ray.exceptions.RayError as error:
        return End(item=item, error=error)


@contextmanager
def running(fleet: Fleet) -> Iterator[Any]:
    """Ray, connected or our own, inside of the block."""
    is_own = fleet.address == LOCAL
    if is_own:
        os.environ.update(LOCAL_SETTINGS)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    try:
        import ray
    except ImportError as error:
        raise MagiCaptureError("many jobs run on Ray, which is not installed: pip install 'ray>=2.40'") from error

    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    short = "/tmp" if os.path.isdir("/tmp") else None  # a socket's path has 104 characters at most
    folder = Path(tempfile.mkdtemp(prefix="magicapture-ray-", dir=short)) if is_own else None
    try:
        if is_own:
            cores = None if fleet.workers is None else math.ceil(fleet.workers * fleet.cpus)
            with without_dashboard():
                ray.init(LOCAL, num_cpus=cores, object_store_memory=OBJECT_STORE, _temp_dir=str(folder), **quiet)
        else:
            connect(ray, fleet.address)
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def without_dashboard() -> Iterator[None]:
    """Ray starts its dashboard's process even where `include_dashboard` is off, and even where usage statistics are off
    that process asks the network on which cloud it is (ray 2.60, dashboard/modules/usage_stats)."""
    from ray._private.node import Node

    start = Node.start_api_server
    Node.start_api_server = lambda self, **options: None
    try:
        yield
    finally:
        Node.start_api_server = start


def connect(ray: Any, address: str) -> None:
    """Raises MagiCaptureError for a cluster that is not there, for which Ray would look for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise MagiCaptureError(
            f"--address {address}: {_first_line(error)}; leave it out for this machine alone"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
