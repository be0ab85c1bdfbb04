"""The checks of tests/nodes/checks, each a test of its own, inside every ComfyUI of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from magicapture_core.models import models_folder

from ..comfy.trees import Tree, find_trees

HERE = Path(__file__).parent
TREES = find_trees()[0]
CHECKS = [
    f"{path.stem}.{name}"
    for path in sorted((HERE / "checks").glob("check_*.py"))
    for name in re.findall(r"^def (check_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
]
pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module", params=TREES or [None], ids=[tree.version for tree in TREES] or ["none"])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path
) -> dict[str, str]:
    """Name of each check -> empty, or its traceback. All of a tree share one process."""
    tree: Tree = request.param
    folder = tmp_path_factory.mktemp(f"inside-{tree.version}")
    file = folder / "results.json"
    command = [tree.python, HERE / "inside.py", tree.folder, file, folder / "base", small_checkpoint]
    environment = os.environ | {"MAGICAPTURE_MODELS": str(models_folder())}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert file.exists(), run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("check", CHECKS)
def test_inside(results: dict[str, str], check: str) -> None:
    assert not results[check], results[check]


def test_every_check_was_run(results: dict[str, str]) -> None:
    assert set(results) == set(CHECKS)
