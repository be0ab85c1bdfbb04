"""Every shipped workflow: sound as a file, and run on a fresh server, in the order of the journeys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from .graph import PAGE_ONLY, to_prompt, value_names
from .journeys import CHECKPOINT, defaults
from .server import ComfyServer
from .trees import PACK

RELEASED = PACK / "tests" / "data" / "released" / "2026-11"  # the workflows as they were then
FILES = sorted((PACK / "workflows").glob("*.json"))
SMALL: dict[str, dict[str, Any]] = {  # a small model, small pictures, few steps; everything else as shipped
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "MagiCaptureFaceMask": {"resolution": 64, "min_face_size": 8},
    "TrainMagiCaptureLoRA": {"preview_every": 0, "name": "shipped"},
    "MagiCaptureTrainSeFiIdentity": {"preview_every": 0, "name": "shipped", "resolution": 64, "num_steps": 1},
    "MagiCaptureComposedPromptSampler": {"width": 64, "height": 64, "steps": 2, "count": 2},
    "MagiCaptureFaceRegions": {"width": 96, "height": 64},
    "MagiCaptureGroupPortraitSampler": {"width": 96, "height": 64, "steps": 2},
    "MagiCaptureRestoreIdentity": {"steps": 2},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2},
    "MagiCaptureRestoreAndUpscale": {"upscale_by": 1.25},
}
SETTINGS = {"resolution": 64, "inversion_num_steps": 1, "tuning_num_steps": 1}


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def ours(workflow: dict[str, Any]) -> list[str]:
    """Up to the portrait; the node that saves it stands where Save Image would."""
    types = [node["type"] for node in workflow["nodes"]]
    return [name for name in types if "MagiCapture" in name and name != "MagiCaptureSavePortraits"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_sound(path: Path) -> None:
    """Links join sockets of one type, ids are unique, a note says where to start, the thumbnail is a picture."""
    workflow = load(path)
    assert workflow["version"] == 0.4
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) == workflow["last_node_id"]
    assert len({link[0] for link in workflow["links"]}) == workflow["last_link_id"]
    for number, origin, slot, target, place, kind in workflow["links"]:
        output, socket = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in output["links"]
        assert socket["link"] == number
        assert output["type"] == kind
        assert socket["type"] in (kind, "*")
    notes = [node for node in workflow["nodes"] if node["type"] in PAGE_ONLY]
    assert any(node.get("title") == "Start here" for node in notes)
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert min(thumbnail.size) >= 256
        assert np.asarray(thumbnail.convert("L"), dtype=float).std() > 10


def test_yesterdays_workflows_keep_their_meaning(server: ComfyServer) -> None:
    """Values lie by position: those that a saved file holds still belong to the widgets that they were saved for.

    And its links still join what they joined: inputs by name, outputs by place.
    """
    info = server.object_info()
    widgets = load(RELEASED / "widgets.json")
    for path in sorted(RELEASED.glob("MagiCapture*.json")):
        for node in [node for node in load(path)["nodes"] if "MagiCapture" in node["type"]]:
            then, known = widgets[node["type"]], info[node["type"]]
            assert len(node["widgets_values"]) == len(then)
            assert list(value_names(known))[: len(then)] == then, (path.stem, node["type"])
            sockets = {name for group in known["input"].values() for name in group}
            assert {socket["name"] for socket in node["inputs"]} <= sockets, (path.stem, node["type"])
            outputs = [output["type"] for output in node["outputs"]]
            assert known["output"][: len(outputs)] == outputs, (path.stem, node["type"])


def test_photos_to_portrait_needs_six_of_our_nodes() -> None:
    assert len(FILES) >= 4
    assert len(ours(load(FILES[0])) + ours(load(FILES[1]))) <= 6


def test_checkpoints_are_named_for_the_missing_model_dialog() -> None:
    for path in FILES:
        for node in load(path)["nodes"]:
            if node["type"] == "CheckpointLoaderSimple":
                (model,) = node["properties"]["models"]
                assert [model["name"]] == node["widgets_values"]
                assert model["directory"] == "checkpoints"
                assert model["url"].startswith("https://")


def test_the_templates_browser_lists_them(server: ComfyServer) -> None:
    """And serves what it lists, at the page's own address: the first of the folders with a customary name wins."""
    listed = server.get("/workflow_templates")["ComfyUI-MagiCapture"]
    assert sorted(listed) == [path.stem for path in FILES]
    for path in FILES:
        address = f"/api/workflow_templates/ComfyUI-MagiCapture/{quote(path.stem)}"
        assert json.loads(server.fetch(f"{address}.json")) == load(path)
        assert server.fetch(f"{address}.jpg") == path.with_suffix(".jpg").read_bytes()


def test_every_workflow_runs(server: ComfyServer) -> None:
    """One after the other as a user opens them: 2 takes the LoRA that 1 has trained. Every preview shows pictures."""
    info = server.object_info()
    for path in FILES:
        workflow = load(path)
        prompt = to_prompt(workflow, info, SMALL)
        for node in [node for node in prompt.values() if node["class_type"] == "TrainMagiCaptureLoRA"]:
            shipped, _ = node["inputs"].get("settings", ("", 0))
            widgets = prompt[shipped]["inputs"] if shipped else defaults(info, "MagiCaptureSettings")
            prompt["settings"] = {"class_type": "MagiCaptureSettings", "inputs": widgets | SETTINGS}
            node["inputs"]["settings"] = ["settings", 0]
        run = server.run(prompt)
        for number, node in prompt.items():
            if node["class_type"] in ("PreviewImage", "MagiCaptureSavePortraits"):
                assert server.images(run, number), (path.stem, node)
            if node["class_type"] == "MagiCaptureSavePortraits":
                for image in server.images(run, number):
                    assert "trainedalgorithmicmedia" in image.info["XML:com.adobe.xmp"].lower()
                    assert json.loads(image.info["prompt"]).keys() == prompt.keys()
                    assert server.base.name not in str(image.info)  # ComfyUI adds the nodes' fingerprints
            if node["class_type"] == "PreviewAny":
                assert "".join(run.outputs[number]["text"]), (path.stem, node)
    assert (server.base / "models" / "loras" / "shipped.safetensors").is_file()
    assert (server.base / "models" / "sefi_identities" / "shipped.safetensors").is_file()
    preview = server.fetch("/experiment/models/preview/loras/0/shipped.safetensors")  # as the page's library asks
    assert preview[8:12] == b"WEBP"
