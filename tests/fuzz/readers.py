"""Every reader of foreign bytes: files that it takes, as small as they can be, and how it is called.

The contract of each: a valid result, or a MagiCaptureError of one line, or an OSError of the file system.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from magicapture_core import artifact, backbone, halves, images, kept, tflite
from magicapture_core.artifact import Artifact
from magicapture_core.collage_controls import load_controlnet
from magicapture_core.dino import load_dino
from magicapture_core.evaluate.aesthetic import AestheticPredictor, load_aesthetic
from magicapture_core.evaluate.clip import load_clip
from magicapture_core.face_nets import FaceNet
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.pretrained import load_descriptor
from magicapture_core.recognisers import load_recogniser
from magicapture_core.sefi import identity
from magicapture_core.small_recognisers import TrainingRecogniser, read_world
from magicapture_core.taesd import load_taesd
from magicapture_core.train_command import merge, read_toml
from magicapture_core.types import Side, Token
from tests.core.flatbuffer import small_network as small_tflite
from tests.fuzz.graphs import any_graph, onnx_files
from tests.ldm import clip_to_ldm, narrow_clip, narrow_unet, narrow_vae, save_checkpoint, unet_to_ldm, vae_to_ldm
from tests.small import SMALL, small_config, small_dino

Files = dict[str, bytes]  # place in a folder -> content


@dataclass(frozen=True, kw_only=True)
class Kind:
    """seeds: sound files or folders. read: by the place of the first file. edited: which files a stranger's hand has
    changed, by their endings. draw: the first file, made by chance instead of by edits."""

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], object]
    edited: tuple[str, ...] = ("",)
    draw: Callable[[Random], bytes] | None = None


def written(write: Callable[[Path], object]) -> Files:
    """What a function writes into a folder."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def tensors(values: dict[str, Tensor], metadata: dict[str, str] | None = None, name: str = "a") -> Files:
    plain = {key: value.contiguous().clone() for key, value in values.items()}
    return written(lambda folder: save_file(plain, folder / f"{name}.safetensors", metadata=metadata))


def pickled(value: Any, zipped: bool = True) -> Files:
    return written(lambda folder: torch.save(value, folder / "a.pth", _use_new_zipfile_serialization=zipped))


def both(values: dict[str, Tensor]) -> list[Files]:
    return [tensors(values), pickled(values), pickled(values, zipped=False)]


# -- ours --------------------------------------------------------------------------------------------------------------


def small_lora() -> Artifact:
    """One layer of each model at rank 2, split; two words."""
    lora = {}
    for name in ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q", "lora_te_text_model_q_proj"):
        lora |= {f"{name}.lora_down.weight": torch.ones(2, 3), f"{name}.lora_up.weight": torch.ones(4, 2)}
        lora |= {f"{name}.alpha": torch.tensor(2.0)}
    vectors = torch.ones(1, 128)
    words = (Token(name=side, placeholder=f"<{side}>", initializer="", vectors=vectors) for side in get_args(Side))
    return Artifact(
        name="a",
        architecture="magicapture-tiny",
        tokens=tuple(words),
        lora=lora,
        config=small_config().model_dump(mode="json"),
        templates={"composed": ["{subject} in the style of {style}"]},
        rank_split={"subject": 1, "style": 1},
    )


def lora_files() -> list[Files]:
    whole = written(lambda folder: artifact.save(small_lora(), folder))
    released = Path(__file__).parents[1] / "data" / "golden_v1.safetensors"
    return [whole, {"a.safetensors": released.read_bytes()}]


def read_lora(path: Path) -> object:
    """As the commands do: it is told of, and its halves are taken apart and joined with one's own."""
    json.dumps(artifact.inspect(path))
    read = artifact.load(path)
    shutil.rmtree(path.parent / "out", ignore_errors=True)
    artifact.unpack(path, path.parent / "out")
    if not read.rank_split or read.architecture != small_lora().architecture:
        return read
    halves.scaled(read, {"subject": 0.5, "style": 1.0})
    return halves.mix(read, small_lora(), "both")


def identity_files() -> list[Files]:
    one = identity.SefiIdentity(
        name="a", architecture="magicapture-tiny", placeholder="<person>", initializer="person",
        template="a photo of {person}", stages=torch.ones(2, 2, 128), config={"seed": 1},
    )  # fmt: skip
    return [written(lambda folder: identity.save(one, folder))]


def state_files() -> list[Files]:
    told = kept.Told(history=[[0.0] * 5], looks=[[1.0, 0.5]], looked_at=1)
    return [written(lambda folder: kept.Kept(folder, "0" * 64).save_state({"a": torch.ones(2)}, told))]


def toml_files() -> list[Files]:
    text = """seed = 3\nresolution = 64\n[inversion]\nnum_steps = 3\n[tuning]\nlora_learning_rate = 1e-4
[subject]\nplaceholder_token = "<me>"\ninitializer_token = "person"\n"""
    return [{"a.toml": text.encode()}]


# -- networks ----------------------------------------------------------------------------------------------------------


def recogniser_files() -> list[Files]:
    small = IResNet(BLOCKS[18], 1, 2)
    world = read_world(backbone.TINY_WEIGHTS["unet"]) or ""
    return [*both(small.state_dict()), tensors(TrainingRecogniser().state_dict(), {"world": world})]


def dino_files() -> list[Files]:
    return both(small_dino().state_dict())


def taesd_files() -> list[Files]:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    state = AutoencoderTiny().decoder.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    names = {key: f"{int(key.split('.')[1]) + 1}.{key.split('.', 2)[2]}" for key in state}
    return both({names[key]: value.half() for key, value in state.items()})[:2]


def spandrel_files() -> list[Files]:
    from spandrel.architectures.ESRGAN import ESRGAN

    state = ESRGAN(in_nc=3, out_nc=3, num_filters=4, num_blocks=1, scale=4).state_dict()
    return [*both(state), pickled({"params_ema": state})]


def tflite_files() -> list[Files]:
    return [{"a.tflite": small_tflite()[0]}]


def npz_files() -> list[Files]:
    return [written(lambda folder: tflite.write_npz(small_tflite()[0], folder / "a.npz"))]


def aesthetic_files() -> list[Files]:
    return both(AestheticPredictor(4).state_dict())[:2]


@cache
def tiny() -> backbone.Backbone:
    return backbone.tiny()


def controlnet_files() -> list[Files]:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    net: Any = ControlNetModel.from_unet(tiny().unet, conditioning_embedding_out_channels=(16, 32, 96))
    return [tensors({key: value.half() for key, value in net.state_dict().items()})]


def clip_files() -> list[Files]:
    from transformers import CLIPConfig, CLIPModel

    shared: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shared |= {"num_attention_heads": 1, "projection_dim": 8, "vocab_size": 40, "image_size": 16, "patch_size": 8}
    net: Any = CLIPModel(CLIPConfig(vision_config=shared, text_config=shared, projection_dim=8))
    files = written(net.save_pretrained)
    return [{f"clip/{place}": data for place, data in files.items()}]


@cache
def narrow_parts() -> tuple[Any, Any, Any]:
    """A UNet, a VAE and a text encoder of SD1.5's kind with few channels."""
    return narrow_unet((32, 32), 1, (True, False)), narrow_vae(), narrow_clip(intermediate_size=32)


def checkpoint_files() -> list[Files]:

    unet, vae, text_encoder = narrow_parts()
    parts = unet_to_ldm(unet), clip_to_ldm(text_encoder), vae_to_ldm(vae)
    return [written(lambda folder: save_checkpoint(folder / "a.safetensors", *parts, torch.float16))]


def read_checkpoint(path: Path) -> object:
    return backbone.from_checkpoint(path, backbone.TINY_FOLDER / "tokenizer")


def diffusers_files() -> list[Files]:
    def write(folder: Path) -> None:
        unet, vae, text_encoder = narrow_parts()
        unet.save_pretrained(folder / "unet")
        vae.save_pretrained(folder / "vae")
        text_encoder.save_pretrained(folder / "text_encoder")
        backbone.noise_scheduler().save_pretrained(folder / "scheduler")
        shutil.copytree(backbone.TINY_FOLDER / "tokenizer", folder / "tokenizer")

    return [written(write)]


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture_files() -> list[Files]:
    pixels = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)
    rgb = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 3000
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "jpg", {"exif": exif}),
        (rgb.convert("CMYK"), "jpg", {}),
        (rgb.convert("RGBA"), "png", {"exif": exif}),
        (rgb.convert("P"), "png", {"transparency": 3}),
        (Image.fromarray(np.full((9, 7), 65535, np.uint16)), "png", {}),
        (rgb, "gif", {"save_all": True, "append_images": [rgb.rotate(180)] * 3}),
        (rgb, "webp", {"save_all": True, "append_images": [rgb.rotate(180)] * 3}),
        (rgb, "tiff", {"compression": "tiff_lzw"}),
        (rgb.convert("CMYK"), "tiff", {}),
        (rgb, "bmp", {}),
    ]
    files: list[Files] = []
    for picture, suffix, options in saved:
        data = io.BytesIO()
        picture.save(data, suffix.replace("jpg", "jpeg"), **options)
        files.append({f"a.{suffix}": data.getvalue()})
    return files


def read_picture(path: Path) -> object:
    images.load_photos([path])
    try:
        return images.load_mask(path)
    finally:
        images.load_photo(path)


KINDS: dict[str, Kind] = {
    "lora": Kind(seeds=lora_files, read=read_lora),
    "identity": Kind(seeds=identity_files, read=identity.inspect, edited=("a.safetensors",)),
    "embedding": Kind(
        seeds=lambda: [tensors({"<subject>": torch.ones(2, 8)})],
        read=lambda path: artifact.read_embedding(path, "subject"),
    ),
    "state": Kind(seeds=state_files, read=lambda path: kept.Kept(path.parent, "0" * 64).load_state()),
    "toml": Kind(seeds=toml_files, read=lambda path: small_config(**merge(SMALL, read_toml(path)))),
    "onnx": Kind(seeds=onnx_files, read=load_recogniser, draw=any_graph),
    "recogniser": Kind(seeds=recogniser_files, read=load_recogniser),
    "dino": Kind(seeds=dino_files, read=load_dino),
    "taesd": Kind(seeds=taesd_files, read=load_taesd),
    "spandrel": Kind(seeds=spandrel_files, read=load_descriptor),
    "tflite": Kind(seeds=tflite_files, read=lambda path: tflite.convert(path.read_bytes(), path.name)),
    "npz": Kind(seeds=npz_files, read=FaceNet),
    "aesthetic": Kind(seeds=aesthetic_files, read=lambda path: load_aesthetic(path, 4)),
    "clip": Kind(seeds=clip_files, read=lambda path: load_clip(path.parent)),
    "controlnet": Kind(seeds=controlnet_files, read=lambda path: load_controlnet(path, tiny().unet)),
    "checkpoint": Kind(seeds=checkpoint_files, read=read_checkpoint),
    "diffusers": Kind(
        seeds=diffusers_files, read=lambda path: backbone.from_diffusers(path.parents[1]), edited=(".json", ".txt")
    ),
    "picture": Kind(seeds=picture_files, read=read_picture),
}
