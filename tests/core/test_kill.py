"""kill -9, at whatever moment: no file is half written, no more than STATE_EVERY steps are lost, and what comes out in
the end is what would have."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from tests.killed import NUM_STEPS, STATE_EVERY, train
from tests.small import same

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


class Life(NamedTuple):
    """What one process told before it ended: its last step, and its touches before it wrote the files, after it, and
    in all; 0 where it did not come so far."""

    was_killed: bool
    steps: int
    saving: int
    saved: int
    touches: int


def live(
    work: Callable[..., None], folder: Path, kill_at: int | None = None, seconds_after: tuple[int, float] | None = None
) -> Life:
    """One process at work on `folder`, which `killed` has. seconds_after: it is killed from outside so long after it
    told of that step."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.killed", "diffusers", "transformers", "peft"])  # is imported only once
    said, says = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(folder, says, kill_at))
    process.start()
    says.close()
    told: dict[str, int] = {}
    try:
        while True:
            word, number = said.recv()
            told[word] = number
            if seconds_after and (word, number) == ("step", seconds_after[0]):
                time.sleep(seconds_after[1])
                process.kill()
    except EOFError:
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return Life(process.exitcode != 0, *(told.get(word, 0) for word in ("step", "saving", "saved", "done")))


def state_step(folder: Path) -> int:
    """Of the state on the disk; 0 without one. Every file of weights can be read."""
    for path in folder.rglob("*.safetensors"):
        load_file(path)
    states = list((folder / "work").glob("state-*.safetensors"))
    return int(load_file(states[0])["step"]) if states else 0


def read_result(folder: Path) -> dict[str, Any] | None:
    return next((json.loads(path.read_text()) for path in (folder / "work").glob("result-*.json")), None)


def assert_little_is_lost(folder: Path, life: Life, before: int) -> None:
    """before: the step of the state that the life began with, beyond which it may not have come."""
    result, reached = read_result(folder), max(life.steps, before)
    if result is None:
        assert reached - STATE_EVERY <= state_step(folder) <= reached + 1  # killed in the look after its last step
    else:
        assert all(Path(file).is_file() for file in result["files"])


def assert_whole(folder: Path, whole: Path) -> None:
    """What was trained in the folder is what was trained in the other, and nothing else is left there."""
    found, expected = read_result(folder), read_result(whole)
    assert found is not None
    assert expected is not None
    assert (found["key"], found["history"]) == (expected["key"], expected["history"])
    assert len(found["files"]) == len(expected["files"]) == 3
    for path, other in zip(found["files"], expected["files"], strict=True):
        assert same(load_file(path), load_file(other))
    assert state_step(folder) == 0
    assert {path.name for path in (folder / "work").iterdir()} == {path.name for path in (whole / "work").iterdir()}
    assert pictures(folder) == pictures(whole)


def pictures(folder: Path) -> dict[str, bytes]:
    """Of every look, and the preview beside what was learned: a kill may leave files of it without a result."""
    found = read_result(folder)
    assert found is not None
    looks = {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "work").rglob("*.png")}
    return {**looks, "preview": Path(found["files"][0]).with_suffix(".preview.png").read_bytes()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Life]:
    """A training that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    life = live(train, folder)
    assert (life.was_killed, life.steps) == (False, NUM_STEPS)
    return folder, life


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_touch_of_the_disk(tmp_path: Path, whole: tuple[Path, Life], seed: int) -> None:
    """Twice in a row, each time before a touch that was drawn: mostly while a state is written."""
    moments = random.Random(seed)
    for _ in range(2):
        before = state_step(tmp_path)
        life = live(train, tmp_path, kill_at=moments.randint(1, whole[1].touches // 4))
        assert life.was_killed
        assert_little_is_lost(tmp_path, life, before)
    assert not live(train, tmp_path).was_killed
    assert_whole(tmp_path, whole[0])


def test_killed_between_touches(tmp_path: Path, whole: tuple[Path, Life]) -> None:
    """From outside, a part of a second after a step: in a forward pass, or while bytes go into a state."""
    moments = random.Random(0)
    for step in (2, 4, 7):
        before = state_step(tmp_path)
        life = live(train, tmp_path, seconds_after=(step, moments.uniform(0, 0.03)))
        assert life.was_killed
        assert_little_is_lost(tmp_path, life, before)
    assert not live(train, tmp_path).was_killed
    assert_whole(tmp_path, whole[0])


def test_killed_while_the_result_is_written(tmp_path: Path, whole: tuple[Path, Life]) -> None:
    last = tmp_path / "last"
    assert live(train, last, kill_at=whole[1].saving).was_killed
    shutil.copytree(last, tmp_path / "end")
    end = live(train, tmp_path / "end")
    assert_whole(tmp_path / "end", whole[0])
    half_result = end.saved + 5  # its file beside its place is there, and does not have its name yet
    for kill_at in (half_result, random.Random(0).randint(end.saving + 1, end.touches)):
        folder = tmp_path / str(kill_at)
        shutil.copytree(last, folder)
        life = live(train, folder, kill_at=kill_at)
        assert life.was_killed
        assert_little_is_lost(folder, life, state_step(last))
        assert (kill_at == half_result) == any((folder / "work").glob(".result-*"))
        assert not live(train, folder).was_killed
        assert_whole(folder, whole[0])
