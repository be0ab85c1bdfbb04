"""The pack inside a real server: it loads, every node is known and has its help page."""

from __future__ import annotations

import re

import numpy as np

from .server import ComfyServer, Prompt
from .trees import PACK

NODE_ID = re.compile(r'node_id="(\w+)"')


def node_ids() -> set[str]:
    """Node ids are string literals in the schemas of nodes/."""
    return {name for file in (PACK / "nodes").glob("*.py") for name in NODE_ID.findall(file.read_text("utf-8"))}


def test_the_pack_is_imported(server: ComfyServer, facts: list[str]) -> None:
    log = server.log()
    lines = [line for line in log.splitlines() if line.endswith("ComfyUI-MagiCapture") and "seconds" in line]
    assert len(lines) == 1
    assert "IMPORT FAILED" not in lines[0], log[-3000:]
    facts.append(f"ComfyUI {server.tree.version} imports the pack in {lines[0].split('seconds')[0].split()[-1]} s")


def test_every_node_is_known(server: ComfyServer) -> None:
    known = {name for name, info in server.object_info().items() if info["category"].startswith("MagiCapture")}
    assert known == node_ids()
    assert known


def test_every_node_has_its_help_page(server: ComfyServer) -> None:
    for name in sorted(node_ids()):
        page = server.fetch(f"/extensions/ComfyUI-MagiCapture/docs/{name}.md").decode()
        assert len(page) > 100, name


def test_stock_nodes_sample_from_the_small_checkpoint(server: ComfyServer) -> None:
    """The ground that the other tests stand on: a finite picture that is not flat, and another one for another text."""
    sitting, standing = (text_to_image(server, f"a cat {verb}") for verb in ("sitting", "standing"))
    assert sitting.shape == (64, 64, 3)
    assert sitting.std() > 2
    assert np.abs(sitting - standing).max() > 2


def text_to_image(server: ComfyServer, text: str) -> np.ndarray:
    prompt: Prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15-small.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": 0,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "stock"}},
    }
    (image,) = server.images(server.run(prompt), "6")
    return np.asarray(image.convert("RGB"), dtype=np.float32)
