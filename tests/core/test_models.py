"""Getting the small models: what is read, what is refused, where they lie."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from magicapture_core import models
from magicapture_core.face_nets import FaceNet
from magicapture_core.taesd import FILES
from magicapture_core.types import MagiCaptureError

from .flatbuffer import small_network


def place_wheel(folder: Path, wheel: models.Wheel, members: dict[str, bytes]) -> models.Wheel:
    """Writes a wheel with these members where a user would put it; returns its pin."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / wheel.file, "w") as archive:
        for name, content in {wheel.licence: b"the licence", **members}.items():
            archive.writestr(name, content)
    return replace(wheel, sha256=hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest())


def test_get_faces_from_a_placed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = dict.fromkeys(models.NET_MEMBERS.values(), small_network()[0])
    monkeypatch.setattr(models, "MEDIAPIPE", place_wheel(tmp_path, models.MEDIAPIPE, members))
    lines = models.get_faces(tmp_path)
    assert len(lines) == 3
    assert {path.name for path in (tmp_path / "faces").iterdir()} == {
        *(f"{name}.npz" for name in models.FACE_NETS),
        "LICENSE",
        "NOTICE",
    }
    assert (tmp_path / "faces" / "LICENSE").read_text() == "the licence"
    assert "Apache" in (tmp_path / "faces" / "NOTICE").read_text()
    for name in models.FACE_NETS:
        assert FaceNet(models.find_model(f"faces/{name}.npz", [tmp_path])).size == 4
    (tmp_path / models.MEDIAPIPE.file).unlink()
    assert "already" in models.get_faces(tmp_path)[0]


def test_get_tokenizer_from_a_placed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = gzip.compress(b'"version"\ni n\nin g</w>\nt h\nleft out\n')
    monkeypatch.setattr(models, "NUM_MERGES", 3)
    monkeypatch.setattr(models, "OPEN_CLIP", place_wheel(tmp_path, models.OPEN_CLIP, {models.VOCABULARY_MEMBER: text}))
    models.get_tokenizer(tmp_path)
    folder = tmp_path / "tokenizer"
    assert (folder / "merges.txt").read_bytes() == b"#version: 0.2\ni n\nin g</w>\nt h\n"
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert len(vocabulary) == 2 * 256 + 3 + 2
    assert [vocabulary[word] for word in ("!", "!</w>", "in", "ing</w>", "th")] == [0, 256, 512, 513, 514]
    assert [vocabulary[word] for word in ("<|startoftext|>", "<|endoftext|>")] == [515, 516]
    assert "OpenAI" in (folder / "NOTICE").read_text()


def test_the_tokenizer_is_that_of_sd15() -> None:
    """Ids that every SD1.5 prompt has, read with transformers' class out of the files that the set-up fetched."""
    from transformers import CLIPTokenizer

    folder = models.models_folder() / "tokenizer"
    if not (folder / "vocab.json").is_file():
        pytest.skip(f"tokenizer: run {models.REMEDIES['tokenizer']}")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 49408
    assert tokenizer("A photo of a cat, caf\u00e9").input_ids == [49406, 320, 1125, 539, 320, 2368, 267, 15304, 49407]


def test_every_byte_has_its_own_symbol() -> None:
    symbols = models.byte_symbols()
    assert len(set(symbols)) == 256
    assert symbols[0] == "!"
    assert symbols[188] == "\u0100"  # byte 0, the first without a visible character
    assert chr(0xAD) not in symbols  # the soft hyphen is Latin-1, and invisible


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / models.MEDIAPIPE.file).write_bytes(b"not what was published")
    with pytest.raises(MagiCaptureError, match="is not the published file"):
        models.get_faces(tmp_path)
    assert not (tmp_path / "faces").exists()


def test_without_a_network_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(MagiCaptureError, match=r"could not be downloaded .* put mediapipe-0\.10\.21-.*\.whl") as caught:
        models.get_faces(tmp_path)
    assert "\n" not in str(caught.value)


def test_find_model_takes_the_first_folder_and_names_the_remedy(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder in folders[1:]:
        (folder / "faces").mkdir(parents=True)
        (folder / "faces" / "facemesh.npz").touch()
    assert models.find_model("faces/facemesh.npz", folders) == folders[1] / "faces" / "facemesh.npz"
    with pytest.raises(MagiCaptureError, match=r"run: .*cli\.py\S* models get faces$"):
        models.find_model("faces/blazeface_full.npz", folders)
    with pytest.raises(MagiCaptureError, match=r"run: .*cli\.py\S* models get tokenizer$"):
        models.find_model("tokenizer/vocab.json", folders)
    with pytest.raises(MagiCaptureError, match=r"parsing\.pth is missing; put it into .*a$"):
        models.find_model("parsing.pth", folders)


def test_a_remedy_runs_in_any_folder(tmp_path: Path) -> None:
    """With a Python that does not look into the current folder, as Windows portable's."""
    command = (
        models.REMEDIES["faces"].replace("get faces", "list --json").replace(sys.executable, f"{sys.executable} -P")
    )
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["folder"] == str(models.models_folder()), done.stderr


def test_a_known_model_is_found_where_its_stage_looks(tmp_path: Path) -> None:
    known, home = {model.file: model for model in models.KNOWN_MODELS}, tmp_path / "magicapture"
    net, recogniser, taesd = (known[n] for n in ("faces/facemesh.npz", "w600k_r50.onnx", "taesd_decoder.safetensors"))
    assert [model.find(home) for model in (net, recogniser, taesd)] == [None, None, None]
    below = home / "faces" / "old" / "facemesh.npz"
    for path in (below, tmp_path / "elsewhere" / "buffalo_l" / recogniser.file, tmp_path / "vae_approx" / FILES[1]):
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "insightface").mkdir()
    (tmp_path / "insightface" / "models").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert net.find(home) is None  # no loader looks below
    assert recogniser.find(home) == tmp_path / "insightface" / "models" / "buffalo_l" / recogniser.file
    assert taesd.find(home) == tmp_path / "vae_approx" / FILES[1]
    assert taesd.places == tuple(f"vae_approx/{name}" for name in FILES)
    below.rename(home / net.file)
    assert net.find(home) == home / net.file


def test_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGICAPTURE_MODELS", raising=False)
    inside = tmp_path / "ComfyUI" / "custom_nodes" / "MagiCapture" / "magicapture_core" / "models.py"
    monkeypatch.setattr(models, "__file__", str(inside))
    assert models.models_folder() == tmp_path / "ComfyUI" / "models" / "magicapture"
    alone = tmp_path / "src" / "MagiCapture" / "magicapture_core" / "models.py"
    monkeypatch.setattr(models, "__file__", str(alone))
    assert models.models_folder() == tmp_path / "src" / "MagiCapture" / "models" / "magicapture"
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path / "elsewhere"))
    assert models.models_folder() == tmp_path / "elsewhere"


def test_known_models_lie_where_their_stage_looks() -> None:
    folder = Path("ComfyUI/models/magicapture")
    paths = {model.path(folder).as_posix() for model in models.KNOWN_MODELS}
    assert "ComfyUI/models/magicapture/faces/facemesh.npz" in paths
    assert "ComfyUI/models/facedetection/parsing_bisenet.pth" in paths
    assert all(model.licence and model.purpose and model.get for model in models.KNOWN_MODELS)


def test_the_installer_runs_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from magicapture_core import models; print(models.FACE_NETS[0])"
    root = Path(models.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == models.FACE_NETS[0], done.stderr
