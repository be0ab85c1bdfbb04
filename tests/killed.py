"""A training in a process of its own, which kills itself as `kill -9` does: in the midst of whatever it writes."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from magicapture_core import artifact, fitting, recipe
from magicapture_core.backbone import tiny
from tests.small import portraits, small_config

STATE_EVERY, NUM_STEPS = 2, 8
TOUCHES = {"open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def train(folder: Path, said: Connection, kill_at: int | None) -> None:
    """Sends ("step", its number) after every step, ("saving", touches so far) before the result is written, and
    ("done", touches) last. A touch is whatever Python does to a file below `folder`; before touch `kill_at` it dies."""
    fitting.STATE_EVERY = STATE_EVERY
    touches = 0

    def touch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touches
        if event in TOUCHES and any(str(argument).startswith(str(folder)) for argument in arguments):
            touches += 1
            if touches == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def save(made: artifact.Artifact) -> list[Path]:
        said.send(("saving", touches))
        return list(artifact.save(made, folder))

    sys.addaudithook(touch)
    recipe.personalize(
        tiny(),
        {"subject": portraits(2), "style": portraits(2, seed=1)},
        small_config(inversion={"num_steps": 3}, tuning={"num_steps": NUM_STEPS - 3}),
        name="someone",
        folder=folder / "work",
        save=save,
        on_step=lambda step: said.send(("step", step.step)),
    )
    said.send(("done", touches))
