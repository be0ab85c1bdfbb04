"""write_atomic: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicapture_core.files import write_atomic


def test_writes_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("first", "second"):
        assert write_atomic(path, lambda beside, text=text: beside.write_text(text)) == path
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(beside: Path) -> None:
        assert beside.suffix == ".txt"  # libraries choose the format by it
        beside.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_can_be_read_by_whom_an_ordinary_new_file_can(tmp_path: Path) -> None:
    """safetensors leaves its files to their owner alone."""
    ordinary, written = tmp_path / "ordinary", tmp_path / "lora.safetensors"
    ordinary.touch()
    for _ in ("new", "replaced"):
        write_atomic(written, lambda beside: save_file({"weight": torch.zeros(1)}, beside))
        assert written.stat().st_mode == ordinary.stat().st_mode
        written.chmod(0o600)
