"""Whatever a stranger's file holds: a result, or one line that says what is wrong. `python -m tests.fuzz` runs the same
for long, each reader in a process with limits of time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.examples import Target, target

FAST = ("lora", "identity", "embedding", "state", "toml", "onnx", "tflite", "npz", "picture")
SLOW = ("recogniser", "dino", "aesthetic", "spandrel")
LIMITS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def files(request: pytest.FixtureRequest) -> Iterator[Target]:
    with target(request.param) as made:
        yield made


@pytest.mark.parametrize("files", [*FAST, *SLOW], indirect=True)
def test_sound_files_are_read(files: Target) -> None:
    """Else the edits would begin from what is refused anyway."""
    for index, seed in enumerate(files.seeds):
        name = next(iter(seed))
        assert files.read(index, name, seed[name]) == "read"


@pytest.mark.parametrize("files", FAST, indirect=True)
@settings(max_examples=60, **LIMITS)
@given(random=st.randoms(use_true_random=False))
def test_edited_files(files: Target, random: Random) -> None:
    files.read(*files.drawn(random))


@pytest.mark.parametrize("files", SLOW, indirect=True)
@settings(max_examples=15, **LIMITS)
@given(random=st.randoms(use_true_random=False))
def test_edited_networks(files: Target, random: Random) -> None:
    files.read(*files.drawn(random))
