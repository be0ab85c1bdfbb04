"""Work in a process of its own, which kills itself as `kill -9` does: in the midst of whatever it writes.

Each sends ("step", how many it has done) after every step, and ("done", touches) last. A touch is whatever Python does
to a file below `folder`; before touch `kill_at` it dies.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from magicapture_core import artifact, fitting, recipe, watch
from magicapture_core.backbone import tiny
from magicapture_core.kept import Kept, result_key
from tests.small import portraits, small_config

STATE_EVERY, LOOK_EVERY, NUM_STEPS = 2, 4, 8
TOUCHES = {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
PAIRS = 2


def train(folder: Path, said: Connection, kill_at: int | None) -> None:
    """A training, or what a kill left to do after it; sends ("saving", touches so far) before its files are written,
    and ("saved", touches) after."""
    fitting.STATE_EVERY, watch.NUM_STEPS = STATE_EVERY, 2
    touches = die_at_touch(folder, kill_at)
    backbone, photos = tiny(), {"subject": portraits(2), "style": portraits(2, seed=1)}
    config = small_config(inversion={"num_steps": 3}, tuning={"num_steps": NUM_STEPS - 3})
    looking = watch.Watch(every=LOOK_EVERY)
    kept = Kept(folder / "work", result_key(backbone, photos, config, watch=looking))

    def save(made: artifact.Artifact) -> list[Path]:
        said.send(("saving", touches()))
        files = list(artifact.save(made, folder))
        said.send(("saved", touches()))
        return files

    recipe.personalize(
        backbone,
        photos,
        config,
        name="someone",
        folder=kept.folder,
        key=kept.key,
        save=save,
        on_step=lambda step: said.send(("step", step.step)),
        watch=looking,
    )
    said.send(("done", touches()))


def measure(folder: Path, said: Connection, kill_at: int | None) -> None:
    """PortraitBench's runs of two methods, each a training of three steps whose pictures mean nothing."""
    from portraitbench import methods, runs
    from portraitbench.lines import run_missing

    runs.CACHE, runs.EDITED, runs.MADE = folder / "cache", 1, 2
    runs.SAMPLING |= {"num_steps": 2}
    methods.PASSES = 64
    touches = die_at_touch(folder, kill_at)
    wanted = [
        runs.Run(method=method, pair=pair, seed=0, split="tuning")
        for pair in range(PAIRS)
        for method in (methods.OURS, "split")
    ]
    done = run_missing(wanted, runs.measure_run, folder / "runs.jsonl", runs.Run.of)
    said.send(("step", 0))
    for step, _ in enumerate(done, start=1):
        said.send(("step", step))
    said.send(("done", touches()))


def die_at_touch(folder: Path, kill_at: int | None) -> Callable[[], int]:
    """-> how many touches there were so far."""
    touches = 0

    def touch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touches
        if event in TOUCHES and any(str(argument).startswith(str(folder)) for argument in arguments):
            touches += 1
            if touches == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)
    return lambda: touches
