"""The page that users see, in a real browser: every template opens without a red node, and runs when Run is pressed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .page import ComfyPage, opened
from .server import ComfyServer
from .test_workflows import FILES, SETTINGS, SMALL
from .trees import newest_version

SHIPPED_NAME = "v1-5-pruned-emaonly-fp16.safetensors"  # of the checkpoint in the workflows
SETTINGS_NODE = "MagiCaptureSettings"
TRAININGS = ("TrainMagiCaptureLoRA", "MagiCaptureTrainSeFiIdentity")
pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def page(server: ComfyServer, small_checkpoint: Path) -> Iterator[ComfyPage]:
    if server.tree.version != newest_version():
        pytest.skip("in the newest ComfyUI alone: it takes minutes")
    (server.base / "models" / "checkpoints" / SHIPPED_NAME).symlink_to(small_checkpoint)
    with opened(server) as page:
        yield page


def make_small(page: ComfyPage) -> None:
    for node_type, values in SMALL.items():
        page.set_widgets(node_type, {name: value for name, value in values.items() if name != "ckpt_name"})
    types = [node["type"] for node in page.nodes()]
    if "TrainMagiCaptureLoRA" in types and SETTINGS_NODE not in types:
        page.connect_new(SETTINGS_NODE, "TrainMagiCaptureLoRA", "settings")
    page.set_widgets(SETTINGS_NODE, SETTINGS)


@pytest.mark.parametrize("title", [path.stem for path in FILES])
def test_a_template_opens_and_runs(page: ComfyPage, title: str, tmp_path: Path) -> None:
    """No red node, every preview filled, and a line of progress and pictures on the training node."""
    page.open_template(title)
    assert page.nodes()
    assert not [node for node in page.nodes() if node["unknown"] or node["failed"]]
    make_small(page)
    page.run()
    page.show()
    page.picture().save(tmp_path / f"{title}.png")  # for whoever looks why it is red
    for node in page.nodes():
        assert not node["failed"], node
        if node["type"] in ("PreviewImage", "MagiCaptureSavePortraits", "MagiCaptureFaceMask", *TRAININGS):
            assert node["pictures"], node
        if node["type"] in TRAININGS:
            assert any("step" in text for text in node["texts"]), node
    assert not page.errors
