"""One server per ComfyUI tree, one at a time, for all tests of this folder: the `comfy` tier.

They run after all others, so that no server holds memory while something else is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..memory import give_back
from .server import ComfyServer
from .trees import Tree, find_trees

HERE = Path(__file__).parent
TREES = find_trees()[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfy)
    items.sort(key=lambda item: HERE in item.path.parents)


@pytest.fixture(scope="session", params=TREES or [None], ids=[tree.version for tree in TREES] or ["none"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path
) -> Iterator[ComfyServer]:
    """A running server with the pack and `sd15-small.safetensors`."""
    tree: Tree = request.param
    give_back()
    server = ComfyServer(tree, tmp_path_factory.mktemp(f"comfy-{tree.version}"), quick=True)
    try:
        server.add_model("checkpoints", small_checkpoint)
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
