"""A trained file in stock nodes and in ours: the same pictures by every way that should be the same."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magicapture_core import artifact as files
from magicapture_core import lora
from magicapture_core.backbone import from_checkpoint
from magicapture_core.config import LoraConfig
from magicapture_core.kohya import to_kohya
from magicapture_core.types import Token

from .journeys import CFG, CHECKPOINT, SAMPLING_STEPS, node, stock
from .server import ComfyServer, Prompt, PromptFailed

PROMPT = "A photo of a {} person in the {} style"


@pytest.fixture(scope="module")
def artifact(small_checkpoint: Path) -> files.Artifact:
    """As a training would leave it: our own layers with random weights that show, and two words."""
    generator = torch.Generator().manual_seed(0)
    backbone = from_checkpoint(small_checkpoint)
    with lora.injected(backbone.unet, LoraConfig.model_validate({}), "cross-attention", generator):
        layers = lora.state(backbone.unet)
    shaken = {
        name: replace(layer, up=torch.randn(layer.up.shape, generator=generator) * 0.2)
        for name, layer in layers.items()
    }
    words = [("subject", 1), ("style", 3)]
    return files.Artifact(
        name="ready",
        architecture="stable-diffusion-v1",
        lora=to_kohya("lora_unet", shaken),
        tokens=tuple(
            Token(
                name=name,  # pyright: ignore[reportArgumentType]
                placeholder=f"<{name}>",
                initializer="",
                vectors=torch.randn(count, 768, generator=generator) * 0.05,
            )
            for name, count in words
        ),
    )


@pytest.fixture
def ready(server: ComfyServer, artifact: files.Artifact) -> str:
    """The file's name in the server's loras folder; written once."""
    folder = server.base / "models" / "loras"
    if not (folder / "ready.safetensors").exists():
        embeddings = server.base / "models" / "embeddings"
        embeddings.mkdir(exist_ok=True)
        files.save(artifact, folder, embeddings)
    return "ready.safetensors"


def ours(model: list[Any], clip: list[Any], count: int = 1, seed: int = 5, **inputs: Any) -> Prompt:
    """ComposedPromptSampler behind MODEL and CLIP, with pictures at node 19 and the report at node 20."""
    sampling = {
        "lora_name": "ready.safetensors",
        "prompt": PROMPT.format("{subject}", "{style}"),
        "negative": "",
        "strength_model": 1.0,
        "strength_clip": 1.0,
        "seed": seed,
        "steps": SAMPLING_STEPS,
        "cfg": CFG,
        "sampler_name": "euler",
        "scheduler": "normal",
        "width": 64,
        "height": 64,
        "count": count,
    }
    return {
        "18": node("MagiCaptureComposedPromptSampler", model=model, clip=clip, vae=["1", 2], **sampling | inputs),
        "19": node("SaveImage", images=["18", 0], filename_prefix="composed"),
        "20": node("PreviewAny", source=["18", 2]),
    }


CHECKPOINT_NODE = {"1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)}


def stock_loader(strength: float = 1.0) -> Prompt:
    loader = node(
        "LoraLoader",
        model=["1", 0],
        clip=["1", 1],
        lora_name="ready.safetensors",
        strength_model=strength,
        strength_clip=1.0,
    )
    return CHECKPOINT_NODE | {"2": loader}


def our_loader() -> Prompt:
    loader = node(
        "LoadMagiCaptureLoRA",
        model=["1", 0],
        clip=["1", 1],
        lora_name="ready.safetensors",
        strength_model=1.0,
        strength_clip=1.0,
    )
    return CHECKPOINT_NODE | {"2": loader}


def pictures(server: ComfyServer, prompt: Prompt) -> list[np.ndarray]:
    found = server.images(server.run(prompt), "19")
    return [np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in found]


def test_stock_nodes_read_the_file(server: ComfyServer, ready: str) -> None:
    """No key is left over, the LoRA changes the picture, and so do the words as embedding files."""
    seen = len(server.log())
    text = PROMPT.format("", "")
    plain = pictures(server, CHECKPOINT_NODE | stock(["1", 0], ["1", 1], text))
    patched = pictures(server, stock_loader() | stock(["2", 0], ["2", 1], text))
    words = PROMPT.format("embedding:ready_subject", "embedding:ready_style")
    spoken = pictures(server, stock_loader() | stock(["2", 0], ["2", 1], words))
    log = server.log()[seen:]
    assert "not loaded" not in log.lower()
    assert "does not exist" not in log
    assert np.abs(plain[0] - patched[0]).max() > 2
    assert np.abs(patched[0] - spoken[0]).max() > 2


def test_our_loader_equals_stock_loader_and_embeddings(server: ComfyServer, ready: str) -> None:
    """<subject> in a stock prompt node is the very picture of embedding:ready_subject."""
    by_files = stock(["2", 0], ["2", 1], PROMPT.format("embedding:ready_subject", "embedding:ready_style"))
    by_words = stock(["2", 0], ["2", 1], PROMPT.format("<subject>", "<style>"))
    expected = pictures(server, stock_loader() | by_files)
    assert (pictures(server, our_loader() | by_words)[0] == expected[0]).all()


def test_the_sampler_applies_the_lora_once(server: ComfyServer, ready: str) -> None:
    """On a plain MODEL, behind our loader, and behind the stock loader: one picture, that of the stock nodes."""
    text = PROMPT.format("embedding:ready_subject", "embedding:ready_style")
    expected = pictures(server, stock_loader() | stock(["2", 0], ["2", 1], text))[0]
    double = pictures(server, stock_loader(2.0) | stock(["2", 0], ["2", 1], text))[0]
    assert np.abs(expected - double).max() > 2
    assert (pictures(server, CHECKPOINT_NODE | ours(["1", 0], ["1", 1]))[0] == expected).all()
    assert (pictures(server, stock_loader() | ours(["2", 0], ["2", 1]))[0] == expected).all()
    run = server.run(our_loader() | ours(["2", 0], ["2", 1], artifact=["2", 2]))
    assert (np.asarray(server.images(run, "19")[0].convert("RGB"), dtype=np.int16) == expected).all()
    assert "not applied twice" in "".join(run.outputs["20"]["text"])


def test_every_picture_has_its_own_seed(server: ComfyServer, ready: str) -> None:
    """The second of two is the only one of the next seed; the report names the seeds."""
    run = server.run(CHECKPOINT_NODE | ours(["1", 0], ["1", 1], count=2, seed=7))
    two = [np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in server.images(run, "19")]
    assert "seed 7" in "".join(run.outputs["20"]["text"])
    assert "seed 8" in "".join(run.outputs["20"]["text"])
    alone = pictures(server, CHECKPOINT_NODE | ours(["1", 0], ["1", 1], count=1, seed=8))
    assert len(two) == 2
    assert np.abs(two[0] - two[1]).max() > 2
    assert (two[1] == alone[0]).all()


def test_a_sweep_and_an_odd_size_over_the_api(server: ComfyServer, ready: str) -> None:
    """A picture of the sweep is that of the sampler; 69 x 127 becomes 64 x 120; a bad value is one line."""
    prompt = CHECKPOINT_NODE | ours(["1", 0], ["1", 1], width=69, height=127, strength_style=0.5)
    axes = {"rows": "strength_style", "row_values": "0.5, 1", "columns": "nothing", "column_values": ""}
    inputs = {key: value for key, value in prompt["18"]["inputs"].items() if key not in ("count", "strength_style")}
    sweep = {"18": node("MagiCaptureStrengthSweep", **inputs, **axes), "19": node("SaveImage", images=["18", 1])}
    sweep["19"]["inputs"]["filename_prefix"] = "swept"
    run = server.run(prompt)
    alone = np.asarray(server.images(run, "19")[0].convert("RGB"), dtype=np.int16)
    swept = server.run(prompt | sweep)
    cells = [np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in server.images(swept, "19")]
    assert alone.shape == (120, 64, 3)
    assert "width, height: 64 x 120" in "".join(run.outputs["20"]["text"])
    assert np.abs(cells[0] - alone).max() <= 1  # the VAE rounds a batch otherwise than one
    assert np.abs(cells[1] - alone).max() > 2
    assert "picture 2: style 1" in "".join(swept.outputs["20"]["text"])
    assert server.images(swept, "18")[0].width > 64  # the sheet, on the node
    prompt["18"] = node("MagiCaptureStrengthSweep", **inputs, **axes | {"row_values": "much"})
    with pytest.raises(PromptFailed, match="row_values: 'much' is no number"):
        server.run(prompt | {"19": sweep["19"]})


def test_cancel_while_sampling(server: ComfyServer, ready: str) -> None:
    """A long sampling stops, and the next one works."""
    with server.listen() as events:
        prompt_id = server.queue(CHECKPOINT_NODE | ours(["1", 0], ["1", 1], steps=900, seed=11))
        deadline = time.monotonic() + 120
        while not events.of("progress") and time.monotonic() < deadline:
            time.sleep(0.02)
        server.interrupt()
        assert server.wait(prompt_id).interrupted
    assert len(pictures(server, CHECKPOINT_NODE | ours(["1", 0], ["1", 1], seed=12))) == 1
