"""Runs that are missing: here, or by workers of Ray, the same lines."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from portraitbench.__main__ import workers
from portraitbench.lines import RAY, add_line, read_lines, run_missing
from tests.fleet_work import square


@pytest.mark.skipif(find_spec("ray") is None, reason="the fleet extra is not installed")
def test_lines_of_workers_of_ray_are_those_of_a_plain_run(tmp_path: Path) -> None:
    for name, how in (("plain", 1), ("ray", RAY)):
        add_line(tmp_path / name, square(2))
        done = list(run_missing([1, 2, 3], square, tmp_path / name, lambda line: line["number"], how))
        assert done[0] == square(2)
    plain, ray = ((tmp_path / name).read_bytes().splitlines(keepends=True) for name in ("plain", "ray"))
    assert sorted(ray) == sorted(plain)
    assert len(ray) == 3


def test_half_a_line_takes_no_other_with_it(tmp_path: Path) -> None:
    """As a full disk leaves one."""
    path = tmp_path / "runs.jsonl"
    add_line(path, square(1))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"number": 2, "fig')
    add_line(path, square(3))
    assert read_lines(path) == [square(1), square(3)]


def test_workers_are_a_number_or_an_address() -> None:
    assert [workers(text) for text in ("2", "ray", "10.0.0.1:6379")] == [2, "ray", "10.0.0.1:6379"]
    with pytest.raises(ValueError, match="many"):
        workers("many")
