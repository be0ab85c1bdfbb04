"""One run by several processes: the same steps, and the same files, as one process makes of the same items."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn

from magicapture_core import artifact, fitting
from magicapture_core.__main__ import main
from magicapture_core.backbone import tiny
from magicapture_core.crew import ALONE, Crew, join_crew
from magicapture_core.estimate import Estimate, estimate
from magicapture_core.images import save_image
from magicapture_core.kept import Result
from magicapture_core.recipe import personalize
from magicapture_core.types import Dismissed, MagiCaptureError
from tests.small import portraits, small_config

ROOT = Path(__file__).parents[2]
PHOTOS = {"subject": portraits(3), "style": portraits(3, seed=1)}
CONFIG = small_config(accumulate=3, tuning={"num_steps": 4})
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
LAUNCH += ("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "magicapture_core")
PATIENCE = timedelta(minutes=5)  # with one that waits for the other in vain
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo meets by other means on Windows")


def in_two_processes(run: Callable[[Crew, Path], object], folder: Path) -> None:
    """run(crew, folder) in each of two; what one of them raises fails the test."""
    get_context("forkserver").set_forkserver_preload(["tests.small", "diffusers", "transformers", "peft"])
    torch.multiprocessing.start_processes(_member, (run, folder), nprocs=2, start_method="forkserver")


def _member(rank: int, run: Callable[[Crew, Path], object], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=PATIENCE
    )
    run(Crew(rank=rank, size=2), folder)


def learn(crew: Crew, folder: Path) -> Result:
    return personalize(
        tiny(),
        PHOTOS,
        CONFIG,
        name="someone",
        folder=folder / "work",
        save=lambda made: list(artifact.save(made, folder)),
        crew=crew,
    )


def learn_together(crew: Crew, folder: Path) -> None:
    if crew.is_first:
        learn(crew, folder)
    else:
        with pytest.raises(Dismissed):
            learn(crew, folder)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Sums in another order differ in their last bits, which Adam makes a little more of where a gradient is near 0."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = learn(ALONE, alone)
    together.mkdir()
    in_two_processes(learn_together, together)
    (file,) = (together / "work").glob("result-*.json")
    found = json.loads(file.read_text())
    assert found["key"] == expected.key
    assert len(found["files"]) == len(expected.files) == 3
    for path, other in zip(found["files"], expected.files, strict=True):
        tensors, others = load_file(path), load_file(other)
        assert tensors.keys() == others.keys()
        for key in others:
            assert (tensors[key].float() - others[key].float()).norm() <= 2e-3 * others[key].float().norm(), key
    torch.testing.assert_close(torch.tensor(found["history"]), torch.tensor(expected.told.history), rtol=1e-4, atol=0)


def test_asked_to_end_it_leaves_a_state_that_one_process_goes_on_from(tmp_path: Path, capsys: Any) -> None:
    """The launcher hands a cluster's SIGTERM on to all; the first keeps the state, and no process is left waiting."""
    for side in ("subject", "style"):
        save_image(PHOTOS[side].images[0], tmp_path / side / "0.png")
        save_image(PHOTOS[side].masks[0].expand(3, -1, -1), tmp_path / f"{side}-masks" / "0.png")
    folders = [f"--{name}={tmp_path / name}" for name in ("subject", "style", "subject-masks", "style-masks")]
    settings = ["--inversion-steps=2", "--tuning-steps=9", "--look-every=1000", "--device=cpu", "--json"]
    arguments = ["train", *folders, f"--output={tmp_path / 'out'}", "--name=someone", *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *LAUNCH, *arguments], env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = b""
    while b"phase=tuning" not in said:
        said += (read := process.stderr.read(1))
        assert read, said
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=60)[1]
    assert said.count(b"magicapture train: cancelled. Every step that was done is kept") == 1, said
    (state,) = (tmp_path / "out").glob("magicapture/someone/state-*.safetensors")
    reached = int(load_file(state)["step"])
    assert 2 < reached < 11
    assert main([*arguments, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_from_step"] == reached


def learn_with_a_smaller_estimate(crew: Crew, folder: Path) -> None:
    tries = []

    def too_much_at_first(opened: Any) -> Estimate:
        tries.append(opened)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("no GPU has this much")
        return estimate(opened)

    fitting.estimate = too_much_at_first
    learn_together(crew, folder)
    assert len(tries) == (2 if crew.is_first else 0)


def test_an_estimate_that_is_out_of_memory_makes_all_take_less(tmp_path: Path) -> None:
    in_two_processes(learn_with_a_smaller_estimate, tmp_path)


def pieces(crew: Crew, folder: Path) -> None:
    """What a crew does with gradients, with failures, and with the first one's decisions."""
    rank = crew.rank
    assert crew.share("abcde") == ("ace", "bd")[rank]
    both, mine, nobodys = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    both.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    mine.grad = torch.tensor([5.0, 6.0, 7.0]) if rank else None
    sums = torch.tensor([1.0, 10.0]) * (rank + 1)
    crew.add_up(sums, [both, mine, nobodys])
    assert sums.tolist() == [3, 30]
    assert both.grad.tolist() == [3, 6]
    assert mine.grad is not None
    assert mine.grad.tolist() == [5, 6, 7]
    assert nobodys.grad is None

    with pytest.raises(MemoryError if rank else RuntimeError), crew.together():  # noqa: PT012
        if not rank:
            raise RuntimeError("out of memory")
    with crew.together():
        pass

    with crew.first_before_others():
        if rank:
            assert (folder / "made").exists()
        else:
            time.sleep(0.5)
            (folder / "made").touch()

    crew.check_alike(7)
    with pytest.raises(MagiCaptureError, match="different states"):
        crew.check_alike(rank)

    done = []
    steps: Any = (done.append(number) or number for number in range(1, 9))
    if rank:
        with pytest.raises(Dismissed):
            crew.follow(steps)
    else:
        with closing(crew.led(steps)) as led:
            assert next(step for step in led if step == 3) == 3
    assert done == [1, 2, 3]


def test_each_piece_in_two_processes(tmp_path: Path) -> None:
    in_two_processes(pieces, tmp_path)


def test_a_device_for_all_of_them_is_refused() -> None:
    with pytest.raises(MagiCaptureError, match="a card of its own"):
        join_crew("cuda:1")


def test_one_process_needs_no_other() -> None:
    assert ALONE.share([1, 2]) == [1, 2]
    assert list(ALONE.led(iter("ab"))) == ["a", "b"]  # pyright: ignore[reportArgumentType]
