"""SD1.5 at its true size inside ComfyUI: three and three steps, and stock nodes that use the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .journeys import node, stock, training
from .server import ComfyServer, Prompt
from .trees import newest_version

TEXT = "a photo of a embedding:true_size_subject person"


def pictures(server: ComfyServer, checkpoint: str, strength: float) -> np.ndarray[Any, Any]:
    loader: Prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": node(
            "LoraLoader",
            model=["1", 0],
            clip=["1", 1],
            lora_name="true_size.safetensors",
            strength_model=strength,
            strength_clip=strength,
        ),
    }
    [picture] = server.images(server.run(loader | stock(["2", 0], ["2", 1], TEXT)), "19")
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


@pytest.mark.full
def test_three_and_three_steps_then_stock_nodes(server: ComfyServer, full_checkpoint: Path) -> None:
    if server.tree.version != newest_version():
        pytest.skip("in the newest ComfyUI alone: it is the small checkpoint's way, at gigabytes")
    checkpoint = server.add_model("checkpoints", full_checkpoint)
    prompt = training(server.object_info(), "true_size", inversion_num_steps=3, tuning_num_steps=3)
    prompt["1"]["inputs"]["ckpt_name"] = checkpoint
    prompt["6"]["inputs"]["tuning_lora_learning_rate"] = 1e-2  # three steps have to show in eight bits
    server.run(prompt)
    read_before = len(server.log())
    without, with_lora = (pictures(server, checkpoint, strength) for strength in (0.0, 1.0))
    assert (without != with_lora).any()
    assert "not loaded" not in server.log()[read_before:].lower()
    for made in (server.base / "models").glob("*/true_size*"):  # for others, `newest` is one that fits the small model
        made.unlink()
