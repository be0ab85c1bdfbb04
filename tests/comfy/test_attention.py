"""RecordAttention and AttentionMapViewer over the API: pictures as without them, maps as the viewer's own sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .server import ComfyServer, Prompt, PromptFailed, Run

TEXT = "a photo of a red dog"
SAMPLING = {"steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15-small.safetensors"}}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def recorded(seed: int, words: str = "dog, photo", **viewer: Any) -> Prompt:
    """The user's own KSampler twice, watched and not; both pictures saved, the watched one shown."""
    return {
        "1": LOADER,
        "2": node("CLIPTextEncode", clip=["1", 1], text=TEXT),
        "3": node("CLIPTextEncode", clip=["1", 1], text="blurry"),
        "4": node("EmptyLatentImage", width=64, height=128, batch_size=2),
        "5": node("MagiCaptureRecordAttention", model=["1", 0], clip=["1", 1], prompt=TEXT, words=words, max_grid=32),
        "6": sampler(["1", 0], seed),
        "7": sampler(["5", 0], seed),
        "8": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "9": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "10": node("PreviewImage", images=["8", 0]),
        "11": node("PreviewImage", images=["9", 0]),
        "12": viewer_node(record=["5", 1], images=["9", 0], **viewer),
    }


def alone(seed: int, **inputs: Any) -> Prompt:
    """The viewer samples by itself."""
    sockets = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "seed": seed}
    return {
        "1": LOADER,
        "12": viewer_node(**sockets, **inputs),
        "13": node("PreviewImage", images=["12", 1]),
        "14": node("MaskToImage", mask=["12", 2]),
        "15": node("PreviewImage", images=["14", 0]),
    }


def sampler(model: list[Any], seed: int) -> dict[str, Any]:
    sockets = {"positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return node("KSampler", model=model, seed=seed, denoise=1.0, **sockets, **SAMPLING)


def viewer_node(**inputs: Any) -> dict[str, Any]:
    widgets = {"prompt": TEXT, "negative_prompt": "blurry", "words": "dog, photo", "seed": 0, "num_images": 2}
    widgets |= {**SAMPLING, "width": 64, "height": 128, "threshold": 0.5, "max_grid": 32}
    return node("MagiCaptureAttentionMapViewer", **{**widgets, **inputs})


def overlay(server: ComfyServer, prompt: Prompt) -> np.ndarray:
    (image,) = server.images(server.run(prompt), "12")
    return np.asarray(image.convert("RGB"))


def report(run: Run) -> str:
    (text,) = run.outputs["12"]["text"]
    return text


def test_the_watched_picture_is_the_plain_one(server: ComfyServer) -> None:
    run = server.run(recorded(seed=1))
    plain, watched = (server.images(run, saved) for saved in ("10", "11"))
    assert len(plain) == 2
    for before, after in zip(plain, watched, strict=True):
        assert np.array_equal(np.asarray(before), np.asarray(after))
    (sheet,) = server.images(run, "12")
    assert sheet.width >= 2 * 64
    assert sheet.height >= 2 * 128


def test_a_cached_recorder_starts_anew_with_every_sampling(server: ComfyServer) -> None:
    """The second queue takes RecordAttention from the cache; what it shows is what a sampling of its own shows."""
    shown = [overlay(server, recorded(seed)) for seed in (1, 2)]
    assert not np.array_equal(shown[0], shown[1])
    for seed, picture in zip((1, 2), shown, strict=True):
        assert np.array_equal(picture, overlay(server, alone(seed)))


def test_the_viewer_alone_gives_a_strip_per_picture_and_a_mask_per_word(server: ComfyServer) -> None:
    run = server.run(alone(seed=1))
    strips, masks = (server.images(run, saved) for saved in ("13", "15"))
    assert [strip.width >= 2 * 64 for strip in strips] == [True, True]
    assert [mask.size for mask in masks] == [(64, 128)] * 4
    assert {value for mask in masks for value in np.unique(np.asarray(mask))} == {0, 255}
    assert report(run).startswith("2 steps in 2 ranges, maps of ")


def test_a_mask_makes_the_report_tell_the_leakage(server: ComfyServer) -> None:
    prompt = alone(seed=1, mask=["16", 0])
    prompt["16"] = node("SolidMask", value=1.0, width=64, height=128)
    lines = report(server.run(prompt)).splitlines()
    assert all("outside the mask 0.0% / 0.0%" in line for line in lines[1:3])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (recorded(seed=1, words="dog, cat"), "words: 'cat' is not in the prompt 'a photo of a red dog'"),
        ({"12": viewer_node()}, "model: connect record and images, or model, clip and vae"),
    ],
)
def test_mistakes_are_told_in_one_line(server: ComfyServer, prompt: Prompt, message: str) -> None:
    with pytest.raises(PromptFailed) as failure:
        server.run(prompt)
    assert failure.value.error["exception_message"].startswith(message)
    assert failure.value.error["exception_type"].endswith("MagiCaptureError")
