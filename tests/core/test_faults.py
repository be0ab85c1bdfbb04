"""A full disk, a place where nothing can be written, a folder that goes while it is used, the same run twice."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from safetensors.torch import load_file

from magicapture_core import artifact, recipe
from magicapture_core.backbone import Backbone, tiny
from magicapture_core.kept import Result
from magicapture_core.types import MagiCaptureError
from tests.small import portraits, same, small_config

PHOTOS = {"subject": portraits(2), "style": portraits(2, seed=1)}
CONFIG = small_config()
NOBODY = 65534  # has no rights but everybody's


def train(folder: Path, output: Path | None = None, backbone: Backbone | None = None, **options: Any) -> Result:
    """Its work in `folder`, its files in `output`."""
    return recipe.personalize(
        backbone or tiny(),
        PHOTOS,
        CONFIG,
        name="someone",
        folder=folder,
        save=lambda made: list(artifact.save(made, output or folder / "loras")),
        **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tmp_path_factory.mktemp("whole"))


def assert_the_same(result: Result, whole: Result) -> None:
    for path, other in zip(result.files, whole.files, strict=True):
        assert same(load_file(path), load_file(other))


def told_by_a_process(work: Callable[..., None], *arguments: Any) -> str:
    """The one line that it says."""
    said, says = get_context("forkserver").Pipe(duplex=False)
    process = get_context("forkserver").Process(target=work, args=(*arguments, says))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert said.poll(), "nothing was said"
    message = said.recv()
    assert "\n" not in message
    return message


def with_full_disk(folder: Path, limit: int, said: Any) -> None:
    """A process in which no file can be larger than `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        train(folder)
    except OSError as error:
        said.send(str(error))


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_full_disk_is_one_line_and_no_half_file(tmp_path: Path, whole: Result, share: float) -> None:
    """There is room for a share of the LoRA. What could not be written is not there under its name; with room again the
    training comes to what it would have."""
    limit = int(whole.files[0].stat().st_size * share)
    told_by_a_process(with_full_disk, tmp_path, limit)
    for path in tmp_path.rglob("*.safetensors"):
        load_file(path)
    assert_the_same(train(tmp_path), whole)


def without_rights(folder: Path, said: Any) -> None:
    """A process of somebody who may write nothing there; nor read the model and the packages, which come before."""
    backbone = tiny()
    with TemporaryDirectory() as name:
        train(Path(name), backbone=backbone)
    os.seteuid(NOBODY)
    try:
        train(folder, backbone=backbone)
    except OSError as error:
        said.send(str(error))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_folder_without_the_right_to_write_is_one_line(whole: Result) -> None:
    with TemporaryDirectory() as name:  # pytest's own cannot be entered by others
        folder = Path(name)
        folder.chmod(0o755)
        message = told_by_a_process(without_rights, folder)
        assert "Permission denied" in message
        assert str(folder) in message
        assert not list(folder.iterdir())
        assert_the_same(train(folder), whole)


def test_where_nothing_can_be_written_the_steps_are_not_lost(tmp_path: Path, whole: Result) -> None:
    """The place of the LoRA refuses: the last step's state is kept, and a later call saves it without a step."""
    refused = tmp_path / "refused"
    refused.write_text("a file, where a folder should be")
    with pytest.raises(OSError, match="refused"):
        train(tmp_path / "work", refused)
    steps: list[int] = []
    result = train(tmp_path / "work", tmp_path / "loras", on_step=lambda step: steps.append(step.step))
    assert not steps
    assert result.resumed_from == CONFIG.num_steps
    assert_the_same(result, whole)


def test_a_folder_that_goes_while_it_is_used_comes_back(tmp_path: Path, whole: Result) -> None:
    def remove(step: Any) -> None:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)

    result = train(tmp_path / "work", tmp_path / "loras", on_step=remove)
    assert_the_same(result, whole)


def test_the_same_run_in_another_process_is_refused(tmp_path: Path, whole: Result) -> None:
    """The second would write the first one's state; another run of the same name may go on beside it."""

    def again(step: Any) -> None:
        if step.step == 2:
            with pytest.raises(MagiCaptureError, match="is running"):
                train(tmp_path)

    assert_the_same(train(tmp_path, on_step=again), whole)
