"""The tiers: what a test needs beyond the default, whether this machine has it, and a summary that says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from .checkpoints import Size, make_checkpoint
from .comfy.page import missing as missing_browser
from .comfy.trees import find_trees
from .memory import give_back

FULL_BYTES = 8e9
SKIPPED = pytest.StashKey[dict[str, tuple[str, int]]]()
FACTS = pytest.StashKey[list[str]]()
# One worker's: what shares a ComfyUI server, and what holds gigabytes, which then never runs side by side
LARGE = ("tests/comfy/", "tests/full/", "tests/gpu/", "tests/core/test_backbone.py", "tests/core/test_restore.py")


def obstacle(tier: str) -> str:
    """Why the tier cannot run here; empty when it can."""
    if tier == "comfy":
        return find_trees()[1]
    if tier == "page":
        return missing_browser()
    if tier == "full":
        free = psutil.virtual_memory().available
        return "" if free >= FULL_BYTES else f"needs 8 GB of free memory, there are {free / 1e9:.1f} GB"
    return "" if torch.cuda.is_available() else "no CUDA device"


def pytest_configure(config: pytest.Config) -> None:
    if is_worker(config):  # the other workers have the other cores; so it is for the servers that a test starts
        workers = config.workerinput["workercount"]  # pyright: ignore[reportAttributeAccessIssue]
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes that share the tests (pytest-xdist)."""
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_worker(config):  # what takes minutes first, so that no worker is left alone with it in the end
        items.sort(key=lambda item: not any(item.get_closest_marker(tier) for tier in ("comfy", "full")))
    skipped = config.stash.setdefault(SKIPPED, {})
    for tier in ("comfy", "page", "full", "gpu"):
        members = [item for item in items if item.get_closest_marker(tier)]
        if members and (reason := obstacle(tier)):
            skipped[tier] = (reason, len(members))
            for item in members:
                item.add_marker(pytest.mark.skip(reason=f"{tier} tier: {reason}"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one worker's, since its tests share what is dear to make; so are all files of LARGE together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return LARGE[0] if file.startswith(LARGE) else file

    return ByFile(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a worker has to tell travels to the process that prints the summary."""
    config = session.config
    if is_worker(config):
        told = {"facts": config.stash.get(FACTS, []), "skipped": config.stash.get(SKIPPED, {})}
        config.workeroutput["told"] = told  # pyright: ignore[reportAttributeAccessIssue]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told = getattr(node, "workeroutput", {}).get("told", {"facts": [], "skipped": {}})
    node.config.stash.setdefault(FACTS, []).extend(told["facts"])
    node.config.stash.setdefault(SKIPPED, {}).update(told["skipped"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for fact in config.stash.get(FACTS, []):
        terminalreporter.write_line(fact)
    for tier, (reason, count) in config.stash.get(SKIPPED, {}).items():
        terminalreporter.write_line(f"tier {tier} not run ({count} tests): {reason}", yellow=True)


@pytest.fixture(scope="session")
def facts(pytestconfig: pytest.Config) -> list[str]:
    """Lines appended here are printed at the end of the run: figures that are told and never asserted."""
    return pytestconfig.stash.setdefault(FACTS, [])


def temporary_checkpoint(factory: pytest.TempPathFactory, size: Size) -> Iterator[Path]:
    path = make_checkpoint(factory.mktemp("checkpoints") / f"sd15-{size}.safetensors", size)
    give_back()
    yield path
    path.unlink()  # gigabytes, which pytest would keep for three runs


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SD1.5's topology with narrow levels, random weights, 0.6 GB."""
    yield from temporary_checkpoint(tmp_path_factory, "small")


@pytest.fixture(scope="session")
def full_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SD1.5's true size, random weights, 2.1 GB."""
    yield from temporary_checkpoint(tmp_path_factory, "full")
