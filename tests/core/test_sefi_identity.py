import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magicapture_core.sefi import identity as identities
from magicapture_core.sefi.identity import SefiIdentity
from magicapture_core.types import TINY, MagiCaptureError


def told(**changes):
    return json.dumps({"placeholder": "<person>", "initializer": "person", "template": "a {person}"} | changes)


@pytest.fixture
def ada():
    return SefiIdentity(
        name="ada",
        architecture=TINY,
        placeholder="<person>",
        initializer="person",
        stages=torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0)),
        template="a photo of the face of {person}",
        config={"num_stages": 5},
    )


def test_load_is_the_inverse_of_save(ada, tmp_path):
    path, plain = identities.save(ada, tmp_path)
    again = identities.load(path)
    assert torch.equal(again.stages, ada.stages)
    for field in ("name", "architecture", "placeholder", "initializer", "template", "config", "metadata"):
        assert getattr(again, field) == getattr(ada, field)
    assert path.stat().st_size < 8_000  # 5 x 2 x 128 numbers of four bytes, and what it says of itself
    assert torch.equal(load_file(plain)["<person>"], ada.stages.mean((0, 1))[None])


def test_a_taken_name_gets_one_number_for_both_files(ada, tmp_path):
    identities.save(ada, tmp_path)
    (tmp_path / "ada_2_sefi.safetensors").touch()
    names = [path.name for path in identities.save(ada, tmp_path)]
    assert names == ["ada_3.safetensors", "ada_3_sefi.safetensors"]


def test_what_another_version_says_is_kept(ada, tmp_path):
    path, _ = identities.save(replace(ada, metadata={"magicapture.mood": "calm"}), tmp_path)
    assert identities.load(path).metadata == {"magicapture.mood": "calm"}


def test_the_file_says_what_to_write(ada, tmp_path):
    path, _ = identities.save(ada, tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.trigger_phrase"] == "a photo of the face of <person>"
    assert metadata["modelspec.architecture"] == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magicapture.kind": "lora"}, "no identity made by MagiCapture"),
        ({"magicapture.format": "2"}, "update the pack"),
        (
            {"modelspec.architecture": "stable-diffusion-v1/sefi-identity"},
            "128 channels, which does not fit stable-diff",
        ),
        ({"modelspec.architecture": ""}, "128 channels, which does not fit any model"),
        ({"magicapture.identity": "{"}, "magicapture.identity is damaged"),
        ({"magicapture.identity": "{}"}, "magicapture.identity is damaged"),
        ({"magicapture.identity": told(template="a photo of nobody")}, "with {person} once"),
        ({"magicapture.identity": told(template="a {person}" + " very" * 99)}, "a short line"),
        ({"magicapture.identity": told(initializer="per\x1b[2Json")}, "a short line"),
        ({"magicapture.identity": '{"placeholder": "person", "initializer": "", "template": ""}'}, "not like <person>"),
    ],
)
def test_a_strangers_file_is_one_clear_line(ada, tmp_path, change, message):
    path, _ = identities.save(ada, tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"stages": ada.stages}, tmp_path / "odd.safetensors", metadata | change)
    with pytest.raises(MagiCaptureError, match=message) as caught:
        identities.load(tmp_path / "odd.safetensors")
    assert str(caught.value).startswith("odd.safetensors: ")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (torch.zeros(5, 3, 8), "not 1 to 100 stages of 2"),
        (torch.zeros(10, 8), "not 1 to 100 stages of 2"),
        (torch.full((5, 2, 8), torch.nan), "not finite"),
    ],
)
def test_vectors_that_make_no_sense_are_neither_saved_nor_loaded(ada, tmp_path, stages, message):
    with pytest.raises(MagiCaptureError, match=message):
        identities.save(replace(ada, stages=stages), tmp_path)
    path, _ = identities.save(ada, tmp_path)
    with safe_open(path, "pt") as file:
        save_file({"stages": stages}, tmp_path / "odd.safetensors", file.metadata())
    with pytest.raises(MagiCaptureError, match=message):
        identities.load(tmp_path / "odd.safetensors")
