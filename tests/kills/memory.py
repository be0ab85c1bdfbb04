"""A training for which memory runs out, once, in a call of a network's layer that is drawn; in this process."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

from magicapture_core import artifact, recipe
from magicapture_core.backbone import tiny
from magicapture_core.kept import Result
from magicapture_core.types import MagiCaptureError
from magicapture_core.watch import Watch
from tests.kills.files import read_all
from tests.small import portraits, small_config


class Killed:
    def __init__(self, whole: Path) -> None:
        with counting() as calls:
            self.whole = train(whole)
        self.calls = calls["all"]

    def until_its_end(self, folder: Path, moments: random.Random) -> Counter[str]:
        """How often it ran out, and how often the training was over in one line then; else it goes on with less."""
        counted, result = Counter[str](), None
        while result is None:
            counted["kills"] += 1
            try:
                with counting(moments.randint(1, self.calls)):
                    result = train(folder)
            except MagiCaptureError as error:
                if not re.fullmatch("out of memory.*", str(error)):
                    raise
                counted["in one line"] += 1
            counted += Counter({"files read": read_all(folder)})
        for path, other in zip(result.files, self.whole.files, strict=True):
            torch.testing.assert_close(load_file(path), load_file(other), rtol=1e-3, atol=1e-4)
        return counted


@contextmanager
def counting(fail_at: int = 0) -> Iterator[Counter[str]]:
    """Calls of layers inside the block, of which one fails."""
    calls = Counter[str]()

    def called(layer: Any, inputs: Any) -> None:
        calls["all"] += 1
        if calls["all"] == fail_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = register_module_forward_pre_hook(called)
    try:
        yield calls
    finally:
        hook.remove()


def train(folder: Path) -> Result:
    return recipe.personalize(
        tiny(),
        {"subject": portraits(2), "style": portraits(2, seed=1)},
        small_config(batch_size=2, inversion={"num_steps": 2}, tuning={"num_steps": 4}),
        name="someone",
        folder=folder / "work",
        save=lambda made: list(artifact.save(made, folder)),
        watch=Watch(every=2),
    )
