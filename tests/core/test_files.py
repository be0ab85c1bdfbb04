"""Files are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicapture_core.files import place, write_atomic, written_beside


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


def test_half_a_file_of_weights_does_not_look_like_one(tmp_path: Path) -> None:
    """ComfyUI lists whatever ends in .safetensors, hidden or not, and a kill may leave it."""
    with written_beside(tmp_path / "lora.safetensors", lambda file: save_file({"a": torch.ones(1)}, file)) as beside:
        assert list(tmp_path.iterdir()) == [beside]
        assert (beside.name[0], beside.suffix) == (".", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_place_that_is_taken_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # of exFAT

    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        with written_beside(path, lambda beside, text=text: beside.write_text(text)) as beside:
            if text == "first":
                place(beside, path)
            else:
                with pytest.raises(FileExistsError):
                    place(beside, path)
        assert path.read_text() == "first"
        assert list(tmp_path.iterdir()) == [path]
