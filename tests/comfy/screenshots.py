"""The pictures of the help pages and of README, out of ComfyUI's page: `python -m tests.comfy.screenshots`.

Every shipped workflow is opened from the Templates page and run at a small size on a checkpoint of random weights, so
what a model makes is noise in them; photos, masks and faces are the pack's samples.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints import make_checkpoint
from .page import ComfyPage, missing, opened
from .server import ComfyServer
from .test_pack import node_ids
from .test_page import SETTINGS_NODE, SHIPPED_NAME, make_small
from .test_workflows import FILES
from .trees import PACK, find_trees, newest_version

HELP = PACK / "web" / "docs" / "images"
README_SHOWS = ("1", "4")  # the numbers of these workflows
NODE_WIDTH, PAGE_WIDTH, QUALITY = 560, 1600, 80
LOOSE_WIDTH = 400  # of a node without its workflow: its title can be read
WELL_SEEN: dict[str, dict[str, Any]] = {
    "MagiCaptureFaceMask": {"resolution": 256},
    "TrainMagiCaptureLoRA": {"preview_every": 1},
    "MagiCaptureTrainSeFiIdentity": {"preview_every": 1, "num_steps": 2},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 8},
}


def main() -> None:
    if reason := missing():
        raise SystemExit(reason)
    tree = next(tree for tree in find_trees()[0] if tree.version == newest_version())
    with tempfile.TemporaryDirectory(prefix="ComfyUI-") as folder:
        server = ComfyServer(tree, Path(folder, "base"))
        try:
            make_checkpoint(server.base / "models" / "checkpoints" / SHIPPED_NAME, "small")
            server.wait_until_ready()
            with opened(server) as page:
                photograph(page)
        finally:
            server.stop()


def photograph(page: ComfyPage) -> None:
    left = set(node_ids())
    for path in FILES:
        page.open_template(path.stem)
        make_small(page)
        for node_type, values in WELL_SEEN.items():
            page.set_widgets(node_type, values)
        page.run()
        page.show()
        number = path.stem.split()[1]
        if number in README_SHOWS:
            save(page.picture(), PACK / "docs" / f"workflow-{number}.jpg", PAGE_WIDTH)
        for node in page.nodes():
            if node["runs"] and node["type"] in left - {SETTINGS_NODE}:
                save(page.picture_of(node["id"]), HELP / f"{node['type']}.jpg", NODE_WIDTH)
                left.remove(node["type"])
    for node_type in sorted(left):
        save(page.picture_of(page.add(node_type, LOOSE_WIDTH)), HELP / f"{node_type}.jpg", NODE_WIDTH)


def save(picture: Image.Image, path: Path, width: int) -> None:
    path.parent.mkdir(exist_ok=True)
    small = picture.convert("RGB")
    small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
    small.save(path, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
