"""The checks of tests/nodes/checks, each a test of its own, inside every ComfyUI of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from magicapture_core.models import models_folder

from ..comfy.trees import Tree, find_trees, newest_version, versions

HERE = Path(__file__).parent
TREES = find_trees()[0]
CHECKS = {  # name -> whether it runs in the newest ComfyUI alone
    f"{path.stem}.{name}": bool(mark)
    for path in sorted((HERE / "checks").glob("check_*.py"))
    for mark, name in re.findall(r"^(@newest_alone\n)?def (check_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
}
pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def processes(
    tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path
) -> Iterator[dict[Tree, tuple[subprocess.Popen[bytes], Path]]]:
    """One for every tree, side by side, each on a thread of its own: together they take half the time."""
    environment = os.environ | {"MAGICAPTURE_MODELS": str(models_folder()), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        running = {}
        for tree in TREES:
            folder = tmp_path_factory.mktemp(f"inside-{tree.version}")
            log = stack.enter_context((folder / "log.txt").open("wb"))
            command = [tree.python, HERE / "inside.py", tree.folder, folder / "results.json", folder / "base"]
            extent = "newest" if tree.version == newest_version() else "older"
            process = subprocess.Popen(
                [*command, small_checkpoint, extent], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(process.kill)
            running[tree] = (process, folder)
        yield running


@pytest.fixture(scope="module", params=TREES or [None], ids=[tree.version for tree in TREES] or ["none"])
def tree(request: pytest.FixtureRequest) -> Tree:
    return request.param


@pytest.fixture(scope="module")
def results(tree: Tree, processes: dict[Tree, tuple[subprocess.Popen[bytes], Path]]) -> dict[str, str]:
    """Name of each check -> empty, or its traceback."""
    process, folder = processes[tree]
    process.wait()
    file = folder / "results.json"
    assert file.exists(), (folder / "log.txt").read_text("utf-8", "replace")[-4000:]
    return json.loads(file.read_text("utf-8"))


def is_due(check: str, tree: Tree) -> bool:
    return tree.version == newest_version() or not CHECKS[check]


@pytest.mark.parametrize("check", CHECKS)
def test_inside(tree: Tree, results: dict[str, str], check: str) -> None:
    if not is_due(check, tree):
        pytest.skip("in the newest ComfyUI alone: it takes long, and asks no more of ComfyUI than others")
    assert not results[check], results[check]


def test_every_check_was_run(tree: Tree, results: dict[str, str], facts: list[str]) -> None:
    facts.append(f"inside ComfyUI {tree.version}: {len(results)} checks with {versions(tree)}")
    assert set(results) == {check for check in CHECKS if is_due(check, tree)}
