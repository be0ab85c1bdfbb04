"""Prompts of this pack in API form, for the tests to vary: photos -> masks -> training, and what comes after."""

from __future__ import annotations

from typing import Any

from .server import Prompt

CHECKPOINT = "sd15-small.safetensors"
RESOLUTION = 64
SAMPLING_STEPS, CFG = 2, 3.0


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def training(info: dict[str, Any], name: str, **changes: Any) -> Prompt:
    """LoadPhotos x2 -> FaceMask x2 -> Train at 64 px. changes: settings, or inputs of the training node."""
    settings = defaults(info, "MagiCaptureSettings") | {
        "resolution": RESOLUTION,
        "inversion_num_steps": 1,
        "tuning_num_steps": 2,
    }
    inputs = {"name": name, "preview_every": 0, "train_again": False}
    for key, value in changes.items():
        (settings if key in settings else inputs)[key] = value
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "6": node("MagiCaptureSettings", **settings),
        "7": node("PreviewAny", source=["8", 4]),
        "8": node(
            "TrainMagiCaptureLoRA",
            model=["1", 0],
            clip=["1", 1],
            vae=["1", 2],
            subject_images=["4", 0],
            subject_masks=["4", 1],
            subject_faces=["4", 2],
            style_images=["5", 0],
            style_masks=["5", 1],
            style_faces=["5", 2],
            settings=["6", 0],
        ),
    }
    prompt["8"]["inputs"] |= inputs
    for photos, masks, folder in (("2", "4", "sample: person"), ("3", "5", "sample: style")):
        options = defaults(info, "MagiCaptureFaceMask") | {"resolution": RESOLUTION, "min_face_size": 8}
        prompt[photos] = node("MagiCaptureLoadPhotos", folder=folder)
        prompt[masks] = node("MagiCaptureFaceMask", images=[photos, 0], file_names=[photos, 1], **options)
    return prompt


def defaults(info: dict[str, Any], class_type: str) -> dict[str, Any]:
    """The widgets of a node with their defaults, as a fresh node on the page has them."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info[class_type]["input"].get(group, {}).items():
            settings = options[0] if options else {}
            if "default" in settings:
                found[name] = settings["default"]
            elif isinstance(kind, list):
                found[name] = kind[0]
            elif kind == "COMBO":
                found[name] = settings["options"][0]
    return found


def stock(model: list[Any], clip: list[Any], text: str, seed: int = 5) -> Prompt:
    """KSampler and its surroundings behind MODEL and CLIP, with a picture at node 19."""
    return {
        "14": node("CLIPTextEncode", clip=clip, text=text),
        "15": node("CLIPTextEncode", clip=clip, text=""),
        "16": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "17": node(
            "KSampler",
            model=model,
            positive=["14", 0],
            negative=["15", 0],
            latent_image=["16", 0],
            seed=seed,
            steps=SAMPLING_STEPS,
            cfg=CFG,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "18": node("VAEDecode", samples=["17", 0], vae=["1", 2]),
        "19": node("SaveImage", images=["18", 0], filename_prefix="sampled"),
    }
