"""What fuzzing and reading found, one example each: refused in one line, without the memory that is asked for."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN

from magicapture_core import halves, images, tflite
from magicapture_core.artifact import load, read_embedding, save
from magicapture_core.backbone import from_diffusers
from magicapture_core.collage_controls import load_controlnet
from magicapture_core.dino import load_dino
from magicapture_core.evaluate.clip import load_clip
from magicapture_core.face_nets import FaceNet
from magicapture_core.files import read_state_dict
from magicapture_core.kept import Kept
from magicapture_core.pretrained import load_descriptor
from magicapture_core.recognisers import load_recogniser
from magicapture_core.taesd import load_taesd
from magicapture_core.train_command import read_toml
from magicapture_core.types import MagiCaptureError
from tests.core.flatbuffer import model, operator, tensor
from tests.fuzz.examples import check_message
from tests.fuzz.graphs import doubling, many_sizes
from tests.fuzz.readers import clip_files, diffusers_files, small_lora, tiny


def refuses(read: Callable[[], Any], match: str) -> None:
    with pytest.raises(MagiCaptureError, match=match) as caught:
        read()
    check_message(str(caught.value))


def raw_safetensors(path: Path, dtype: str, shape: list[int], data: bytes = b"", key: str = "a") -> Path:
    header = json.dumps({key: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_a_key_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    key = "\x1b[2J\nAll is well\n" + "a" * 100_000
    path = raw_safetensors(tmp_path / "a.safetensors", "F16", [1, 1], b"\0\0", key)
    refuses(lambda: load(path, [tmp_path]), "no LoRA made by MagiCapture")
    whole = replace(small_lora(), metadata={})
    files = save(whole, tmp_path / "b")
    with pytest.raises(MagiCaptureError) as caught:
        load(_with_key(files[0], key))
    check_message(str(caught.value))


def _with_key(path: Path, key: str) -> Path:
    from magicapture_core.artifact import read_file

    tensors, metadata = read_file(path)
    save_file({**tensors, key: torch.ones(1)}, path, metadata)
    return path


@pytest.mark.parametrize(("dtype", "shape", "data"), [("F4", [4], b"\0\0"), ("C64", [1], bytes(8))])
def test_numbers_that_torch_cannot_convert(tmp_path: Path, dtype: str, shape: list[int], data: bytes) -> None:
    path = raw_safetensors(tmp_path / "a.safetensors", dtype, shape, data)
    refuses(lambda: read_embedding(path, "subject"), "not read here|not a whole safetensors file")
    refuses(lambda: read_state_dict(path), "not read here|cannot be read")


@pytest.mark.parametrize("shape", [[0, 2**40], [2**40, 0, 16, 16], [0]])
def test_sides_that_take_no_bytes(tmp_path: Path, shape: list[int]) -> None:
    path = raw_safetensors(tmp_path / "a.safetensors", "F32", shape)
    refuses(lambda: read_embedding(path, "subject"), "holds less|not a whole")
    refuses(lambda: load_dino(path), "holds less|cannot be read")


def test_one_number_told_to_be_a_tensor_of_any_size(tmp_path: Path) -> None:
    torch.save({"layer1.0.a": torch.ones(1).expand(10**9, 10**9)}, tmp_path / "a.pth")
    for read in (read_state_dict, load_recogniser, load_taesd, load_dino):
        refuses(lambda read=read: read(tmp_path / "a.pth"), "holds less")


def test_tensors_that_hold_no_numbers(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(10**6, 10**6, device="meta")}, tmp_path / "a.pth")
    refuses(lambda: read_state_dict(tmp_path / "a.pth"), "not read here")
    torch.save({"a": torch.zeros(3, 3).to_sparse()}, tmp_path / "b.pth")
    refuses(lambda: read_state_dict(tmp_path / "b.pth"), "not read here|cannot be read")


def test_an_archive_that_unfolds(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "a.pth", "w", 8) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert (tmp_path / "a.pth").stat().st_size < 20_000
    refuses(lambda: read_state_dict(tmp_path / "a.pth"), "cannot be read")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", 8) as small:
        small.writestr("meta.npy", bytes(100_000_000))
    refuses(lambda: FaceNet(tmp_path / "a.npz"), "unfolds")


@pytest.mark.parametrize("meta", [b"[]", b"{}", b'{"operators": [1], "input": 1}', b"[" * 100_000])
def test_a_face_net_whose_graph_is_none(tmp_path: Path, meta: bytes) -> None:
    np.savez(tmp_path / "a.npz", meta=np.frombuffer(meta, np.uint8))
    refuses(lambda: FaceNet(tmp_path / "a.npz"), "is broken")


@pytest.mark.parametrize(("kind", "start"), [("Add", "shape"), ("Concat", "shape"), ("Mul", "side")])
def test_sizes_that_double(tmp_path: Path, kind: str, start: str) -> None:
    (tmp_path / "a.onnx").write_bytes(doubling(kind, start))
    refuses(lambda: load_recogniser(tmp_path / "a.onnx"), "do not fit together")


def test_a_weight_of_many_dimensions(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(many_sizes(200_000))
    refuses(lambda: load_recogniser(tmp_path / "a.onnx"), "damaged")


def test_a_weight_unpacked_in_a_circle() -> None:
    tensors = [tensor((1, 1)), tensor((1, 1)), tensor((1, 1)), tensor((1, 1))]
    operators = [operator(0, [1], 2), operator(0, [2], 1), operator(1, [0, 1], 3)]
    graph, _ = tflite.convert(model([6, 0], tensors, operators, [], 3), "net")
    assert len(graph["operators"]) == 1


def test_a_part_of_a_rank_that_no_layer_has(tmp_path: Path) -> None:
    """Joined with a whole LoRA it would be filled up with zeros, a terabyte of them."""
    files = save(replace(small_lora(), lora={}, rank_split={"subject": 10**9, "style": 1}), tmp_path)
    refuses(lambda: halves.mix(load(files[0]), small_lora(), "both"), "no halves")


def test_settings_with_numbers_that_python_does_not_write(tmp_path: Path) -> None:
    files = save(replace(small_lora(), config={}), tmp_path)
    steps = '{"num_steps": ' + "9" * 4300 + "}"
    _with_metadata(files[0], "magicapture.config", f'{{"inversion": {steps}, "tuning": {steps}}}')
    assert load(files[0]).name == "a"


def _with_metadata(path: Path, field: str, value: str) -> None:
    from magicapture_core.artifact import read_file

    tensors, metadata = read_file(path)
    save_file(tensors, path, {**metadata, field: value})


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = \x00"])
def test_toml_that_python_cannot_hold(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    refuses(lambda: read_toml(tmp_path / "a.toml"), "TOML")


def test_a_setting_that_python_does_not_write(tmp_path: Path) -> None:
    from magicapture_core.config import parse_config

    refuses(lambda: parse_config({"seed": int("f" * 9000, 16)}), "seed=a number of thousands of digits")
    refuses(lambda: parse_config({"seed": "a" * 100_000}), "seed='aaa")


def test_a_state_that_is_another_file(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "0" * 64)
    for tensors in ({"a": torch.ones(1)}, {name: torch.ones(3) for name in ("history", "looks", "looked_at")}):
        save_file(tensors, kept.state_file)
        refuses(kept.load_state, "damaged")


def test_a_program_in_postscript_that_is_called_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by the content and hands it to Ghostscript, where that is installed."""
    import subprocess

    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print showpage\n%%EOF\n"
    (tmp_path / "photo.jpg").write_text(text)
    refuses(lambda: images.load_photo(tmp_path / "photo.jpg"), "cannot be read as a picture")


@pytest.mark.parametrize("mode", ["I;16", "RGB", "LA"])
def test_a_picture_of_all_pixels_that_are_allowed(tmp_path: Path, mode: str) -> None:
    """A small file, and a gigabyte as a tensor: one more is the most that reading it may take on the way."""
    path = tmp_path / "a.tiff"
    Image.new(mode, (100, images.MAX_PIXELS // 100)).save(path, compression="tiff_lzw")
    code = f"""
import resource
from pathlib import Path
from magicapture_core.images import load_photo
limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(*load_photo(Path({str(path)!r})).shape)
"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert asked.stdout.split() == ["3", str(images.MAX_PIXELS // 100), "100"], asked.stderr[-500:]


@pytest.mark.parametrize(
    ("half", "setting", "value"),
    [
        ("vision_config", "image_size", 65_536),
        ("vision_config", "hidden_size", 2**40),
        ("text_config", "vocab_size", -1),
        ("text_config", "num_hidden_layers", 4096),
        ("vision_config", "hidden_act", "none"),
        ("vision_config", "dtype", "fat32"),
        ("text_config", "initializer_range", -1.0),
    ],
)
def test_a_clip_whose_settings_are_none(tmp_path: Path, half: str, setting: str, value: Any) -> None:
    """Whose sizes would take memory before a weight is looked at."""
    [files] = clip_files()
    settings = json.loads(files["clip/config.json"])
    settings[half][setting] = value
    for name, data in {**files, "clip/config.json": json.dumps(settings).encode()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    refuses(lambda: load_clip(tmp_path / "clip"), "^clip: |^clip/config.json|seen by no CLIP")


def test_a_controlnet_of_many_channels(tmp_path: Path) -> None:
    """diffusers would make a layer of 20 000 x 20 000 x 9 numbers before they are compared."""
    first, second = (f"controlnet_cond_embedding.{name}.weight" for name in ("conv_in", "blocks.1"))
    weights = {first: torch.ones(20_000, 1), second: torch.ones(20_000, 1)}
    save_file(weights, tmp_path / "a.safetensors")
    refuses(lambda: load_controlnet(tmp_path / "a.safetensors", tiny().unet), "too many channels")
    save_file({first: torch.ones(())}, tmp_path / "a.safetensors")
    refuses(lambda: load_controlnet(tmp_path / "a.safetensors", tiny().unet), "should be")


@pytest.mark.parametrize("change", [("model.10.weight", "model.x.weight"), ("model.1.sub.1.bias", "model.1sub.1.bias")])
def test_an_upscaler_with_a_name_that_is_nearly_right(tmp_path: Path, change: tuple[str, str]) -> None:
    state = ESRGAN(in_nc=3, out_nc=3, num_filters=4, num_blocks=1, scale=4).state_dict()
    old, new = change
    save_file({key.replace(old, new): value.clone() for key, value in state.items()}, tmp_path / "a.safetensors")
    refuses(lambda: load_descriptor(tmp_path / "a.safetensors"), "not the layers that its architecture should have")


@pytest.mark.parametrize(("part", "setting"), [("unet", "transformer_layers_per_block"), ("vae", "layers_per_block")])
@pytest.mark.parametrize(
    ("count", "match"), [(3, "not a whole diffusers folder"), (4096, "and there are [0-9]+ weights")]
)
def test_a_diffusers_folder_with_more_layers_than_weights(
    tmp_path: Path, part: str, setting: str, count: int, match: str
) -> None:
    """Thousands of them would be made one by one, and each be told of, before any is missed."""
    [files] = diffusers_files()
    config = json.loads(files[f"{part}/config.json"])
    config[setting] = count
    for name, data in {**files, f"{part}/config.json": json.dumps(config).encode()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    refuses(lambda: from_diffusers(tmp_path), match)


def test_a_learned_word_in_numbers_of_eight_bits(tmp_path: Path) -> None:
    """torch can convert them, and asks them nothing."""
    vectors = torch.arange(8.0).reshape(2, 4)
    save_file({"<subject>": vectors.to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert torch.equal(read_embedding(tmp_path / "a.safetensors", "subject").vectors, vectors)
