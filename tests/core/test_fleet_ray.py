"""The fleet on a real Ray of this machine: workers and commands that are killed, jobs that cannot be done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from magicapture_core.__main__ import main
from magicapture_core.fleet.jobs import read_jobs
from magicapture_core.fleet.scheduler import Fleet, Row, Stopped, spread
from magicapture_core.types import MagiCaptureError
from tests import fleet_work
from tests.core.test_fleet import JOBS, made, make_people, write_jobs

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="the fleet extra is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]
ROOT = Path(__file__).parents[2]


def test_a_killed_worker_goes_on_and_ends_with_the_same_weights_and_pictures(tmp_path: Path) -> None:
    """Beside one that nobody kills; Ray begins the other again by itself."""
    make_people(tmp_path, people=("ada",))
    [job] = read_jobs(write_jobs(tmp_path))[1]
    attempts: dict[str, int] = {}

    def look(rows: dict[str, Row]) -> None:
        attempts.update({name: row.attempt for name, row in rows.items()})

    tasks = [(job, str(tmp_path / stage), stage) for stage in ("nowhere", "train")]
    ends = {
        end.item[2]: end.get()
        for end in spread(tasks, fleet_work.killed_once, Fleet(workers=2), name=lambda task: task[2], look=look)
    }
    assert attempts == {"nowhere": 1, "train": 2}
    resumed_from = {stage: told["resumed_from_step"] for stage, told in ends.items()}
    assert resumed_from == {"nowhere": 0, "train": fleet_work.KILLED_AT - 1}
    whole = made(tmp_path / "nowhere" / job.folder)
    assert len([name for name in whole if name.endswith(".safetensors")]) == 3
    assert made(tmp_path / "train" / job.folder) == whole


def test_a_killed_command_repeats_nothing_and_a_bad_job_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_people(tmp_path)
    (tmp_path / "people" / "eve").mkdir()
    (tmp_path / "people" / "eve" / "0.png").write_text("no picture", encoding="ascii")
    (tmp_path / "people-masks" / "eve").mkdir()
    (tmp_path / "people-masks" / "eve" / "0.png").write_text("no picture", encoding="ascii")
    arguments = ["fleet", str(write_jobs(tmp_path, JOBS)), "--workers", "1", "--json"]
    first = subprocess.Popen(
        [sys.executable, "-m", "magicapture_core", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (done := list(tmp_path.glob("results/*/*/result.json"))):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done[0].parent.rglob("*") if path.is_file()
    }

    assert main(arguments) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["done_before"] >= 1
    assert sorted(job["job"] for job in told["jobs"]) == ["short/ada_ink_s0", "short/bob_ink_s0"]
    [failed] = told["failed"]
    assert failed["job"] == "short/eve_ink_s0"
    assert "\n" not in failed["reason"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_ends_of_all_kinds() -> None:
    """What the user can mend is not tried again, another error is and then told, and a stop ends all that is left."""
    rows: dict[str, Row] = {}
    dashboards: list[str] = []

    def look(now: dict[str, Row]) -> None:
        rows.update(now)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                dashboards.extend(part for part in child.cmdline() if part.endswith("dashboard.py"))

    fleet = Fleet(workers=2, retries=1)
    items = ["bad", "odd", "a", "b", "c"]  # once a and b run, odd's second attempt and c wait
    ends = spread(items, fleet_work.end_somehow, fleet, look=look, stopped=lambda: {"a", "b"} <= {*rows})
    errors = {end.item: end.error for end in ends}
    assert isinstance(errors["bad"], MagiCaptureError)
    assert str(errors["bad"]) == "bad: take another"
    assert isinstance(errors["odd"], RuntimeError)
    assert all(isinstance(errors[item], Stopped) for item in "abc")
    assert {item: row.attempt for item, row in rows.items()} == {"bad": 1, "odd": 2, "a": 1, "b": 1}
    assert dashboards == []  # it would ask the network on which cloud it is


def test_a_head_that_is_killed_is_one_line() -> None:
    """Workers and board would go on without it, until Ray itself ended this process."""

    def kill(rows: dict[str, Row]) -> None:
        for child in psutil.Process().children():
            if rows and child.name() == "gcs_server":
                child.kill()

    with pytest.raises(MagiCaptureError, match=r"^Ray is lost \(.+\); the same command goes on$"):
        list(spread(["a"], fleet_work.end_somehow, Fleet(workers=1), look=kill))


def test_more_cards_than_there_are_is_one_line() -> None:
    with pytest.raises(MagiCaptureError, match="gpus 99"):
        list(spread(["a"], fleet_work.end_somehow, Fleet(workers=1, gpus=99)))


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(MagiCaptureError, match=r"--address 127.*refused"):
        list(spread(["a"], fleet_work.end_somehow, Fleet(address="127.0.0.1:9")))
