"""What can be shared says nothing of the photos, of who sits there or of the machine; and nobody is called."""

from __future__ import annotations

import getpass
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from magicapture_core.__main__ import main
from magicapture_core.faces import FaceDetector
from magicapture_core.images import load_photo
from magicapture_core.likeness import embed_face
from magicapture_core.recognisers import load_recogniser
from tests import onnx_files

SAMPLES = Path(__file__).parents[2] / "magicapture_core" / "tiny" / "samples"
WORDS = ("hiddenfolder", "grandmother", "exifsecret")
DESCRIPTION = 0x010E  # of EXIF


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def hide_photos(folder: Path) -> list[Path]:
    """The sample person and style as photos with a past."""
    photos = []
    for side, sample in (("subject", "person"), ("style", "style")):
        for number, file in enumerate(sorted(SAMPLES.glob(f"{sample}_*.jpg"))[:2]):
            photos.append(folder / side / f"grandmother-{side}-{number}.jpg")
            photos[-1].parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as picture:
                exif = picture.getexif()
                exif[DESCRIPTION] = "exifsecret"
                picture.save(photos[-1], exif=exif)
    return photos


def embeddings(recogniser: Path, detector: FaceDetector, photos: list[Path]) -> list[Tensor]:
    network = load_recogniser(recogniser)
    found = [embed_face(network, detector, load_photo(photo)) for photo in photos]
    faces = [embeds[0] for embeds in found if embeds is not None]
    assert faces, "the sample person's face is found"
    return [*faces, torch.stack(faces).mean(0)]


@pytest.mark.usefixtures("no_network")
def test_nothing_of_the_photos_is_in_what_can_be_shared(tmp_path: Path, capsys: Any, detector: FaceDetector) -> None:
    photos, made = hide_photos(tmp_path / "hiddenfolder"), tmp_path / "made"
    network, output = onnx_files.small_network()
    recogniser = tmp_path / "net.onnx"
    recogniser.write_bytes(network.file(output))
    brief = tmp_path / "brief.toml"
    brief.write_text("accumulate = 1", encoding="utf-8")

    def run(*arguments: object) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    sides = ("--subject", photos[0].parent, "--style", photos[-1].parent)
    steps = ("--inversion-steps", 1, "--tuning-steps", 1, "--look-every", 2, "--device", "cpu", "--config", brief)
    lora = run("train", *sides, "--output", made, "--name", "someone", "--recogniser", recogniser, *steps)["lora"]
    run("generate", "--lora", lora, "--output", made / "pictures", "--count", 1, "--num-steps", 1, "--device", "cpu")
    one = ("--name", "one", "--steps", 1, "--device", "cpu", "--config", brief)
    run("sefi", "--photo", photos[0], "--output", made / "one", *one)
    run("unpack", lora, "--output", made / "words")
    run("strip", lora, "--output", made / "stripped")

    files = [path for path in made.rglob("*") if path.is_file()]
    kept = [path for path in files if path.parent.name != "made" and "magicapture" in path.relative_to(made).parts]
    shared = {path: path.read_bytes() for path in files if path not in kept}
    assert {path.suffix for path in shared} == {".safetensors", ".png"}
    own = [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5]  # shorter ones are in any noise
    names = [*WORDS, tmp_path.name, *own]
    for path, content in shared.items():
        for name in names:
            assert not re.search(rb"(?i)\b" + re.escape(name.encode()) + rb"\b", content), (path, name)
            assert name not in path.name

    everything = shared | {path: path.read_bytes() for path in kept}
    secrets = [photo.read_bytes()[-600:-500] for photo in photos]
    for embeds in embeddings(recogniser, detector, photos):
        secrets += [embeds.to(dtype).numpy().tobytes()[:32] for dtype in (torch.float32, torch.float16)]
    for path, content in everything.items():
        assert not any(secret in content for secret in secrets), path
    assert b"exifsecret" in photos[0].read_bytes()
    assert not any(b"exifsecret" in content or b"grandmother" in content for content in everything.values())
