"""PortraitBench's recognisers as anybody's file: the same network, bit for bit, or one line that says what it is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture_core.__main__ import main
from magicapture_core.backbone import TINY_FOLDER
from magicapture_core.kept import TERMS
from magicapture_core.recognisers import load_recogniser
from magicapture_core.small_recognisers import FACE_SIZE
from magicapture_core.types import MagiCaptureError
from portraitbench.nets import WEIGHTS, load_net

NAMES = ("training_recogniser", "judging_recogniser")


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_the_network_of_the_bench_bit_for_bit(name):
    faces = torch.rand(5, 3, FACE_SIZE, FACE_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, expected = load_recogniser(WEIGHTS / f"{name}.safetensors"), load_net(name)
    assert type(found) is type(expected)
    assert torch.equal(found(faces), expected(faces))
    assert found.input_size == FACE_SIZE
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def refused(path, reason):
    with pytest.raises(MagiCaptureError, match=reason) as caught:
        load_recogniser(path)
    assert str(caught.value).startswith(path.name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_another_world_is_refused(tmp_path, name):
    path = tmp_path / "net.safetensors"
    save_file(load_file(WEIGHTS / f"{name}.safetensors"), path, {"world": "2"})
    refused(path, "world 2, and the embedded model is of world 1; take")


def test_the_judges_and_a_part_of_the_weights_are_refused(tmp_path):
    for name in ("style_judge", "face_judge"):
        refused(WEIGHTS / f"{name}.safetensors", "no recogniser of PortraitBench")
    weights = load_file(WEIGHTS / "training_recogniser.safetensors")
    del weights["head.bias"]
    save_file(weights, tmp_path / "net.safetensors", {"world": "1"})
    refused(tmp_path / "net.safetensors", r"head\.bias should be \(64,\) and is nothing")


def test_a_training_on_the_tiny_model_takes_it(tmp_path, capsys, detector):
    for side, sample in (("subject", "person"), ("style", "style")):
        (tmp_path / side).mkdir()
        for photo in sorted((TINY_FOLDER / "samples").glob(f"{sample}_*.jpg"))[:2]:
            shutil.copy(photo, tmp_path / side)
    folders = ["--subject", str(tmp_path / "subject"), "--style", str(tmp_path / "style"), "--output", str(tmp_path)]
    arguments = ["train", *folders, "--name", "known", "--device", "cpu", "--json"]
    arguments += ["--inversion-steps", "1", "--tuning-steps", "2", "--look-every", "3"]
    assert main([*arguments, "--recogniser", str(WEIGHTS / "training_recogniser.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["likeness"].startswith("likeness by step 3: ")
    [result] = (tmp_path / "magicapture" / "known").glob("result-*.json")
    history = json.loads(result.read_text())["history"]
    assert sum(row[TERMS.index("identity")] for row in history) > 0
