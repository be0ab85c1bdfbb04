"""DDIM-inversion identity restoration from the terminal: a picture, a person's file, what is changed and told."""

import json

import pytest
import torch
from safetensors.torch import save_file

from magicapture_core import artifact
from magicapture_core.__main__ import main
from magicapture_core.backbone import tiny
from magicapture_core.diir.pictures import fill_personal
from magicapture_core.images import load_photo, save_image
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.marks import read_mark
from magicapture_core.sefi import identity as identities
from tests.core.test_artifact import make_artifact
from tests.core.test_collages import controls_of
from tests.core.test_sefi_command import identity
from tests.small import random_artifact


@pytest.fixture(scope="module")
def given(tmp_path_factory, astronaut, detector):
    """A photo, one without a face, a mask of its left half, a person's files, and a recogniser, small and random."""
    folder = tmp_path_factory.mktemp("diir")
    save_image(astronaut, folder / "in.png")
    save_image(astronaut.flip(-1), folder / "mirror.png")
    save_image(torch.full((3, 64, 64), 0.5), folder / "grey.png")
    save_image(torch.cat([torch.ones(3, 64, 32), torch.zeros(3, 64, 32)], -1), folder / "left.png")
    artifact.save(random_artifact(tiny()), folder)
    identities.save(identity(), folder)
    torch.manual_seed(0)
    save_file(IResNet(BLOCKS[18], 8, num_features=16).state_dict(), folder / "iresnet.safetensors")
    return folder


@pytest.fixture
def redraw(given, capsys):
    """-> the exit code, the JSON of its answer or its errors."""

    def command(*more, picture="in.png", output="out.png"):
        arguments = ["restore-identity", given / picture, "--output", given / output, *more]
        arguments += ["--num-steps", 4, "--device", "cpu", "--json"]
        code = main([str(part) for part in arguments])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else said.err

    return command


def changed(given, output="out.png"):
    """[H,W], which pixels."""
    return (load_photo(given / output) != load_photo(given / "in.png")).any(0)


def test_the_face_alone_becomes_the_persons(given, redraw):
    code, made = redraw("--identity", given / "ann.safetensors")
    assert code == 0
    assert made["prompt"] == "a photo of <person>"
    assert [face["fate"] for face in made["faces"]] == ["restored"]
    assert made["report"][1].startswith("likeness: not checked")
    assert read_mark(given / "out.png") == "retouched"
    where = changed(given)
    assert where[60:200, 180:270].any()
    assert not where[250:].any()
    assert not where[:, :100].any()


def test_a_picture_that_a_model_made_stays_one(given, redraw):
    save_image(load_photo(given / "in.png"), given / "made.png", "generated")
    code, made = redraw("--identity", given / "ann.safetensors", picture="made.png", output="made-out.png")
    assert code == 0
    assert [face["fate"] for face in made["faces"]] == ["restored"]
    assert read_mark(given / "made-out.png") == "generated"


def test_a_face_that_is_no_more_alike_stays_and_that_is_said(given, redraw):
    compared = ["--recogniser", given / "iresnet.safetensors", "--reference", given / "in.png"]
    code, made = redraw("--identity", given / "ann.safetensors", *compared)
    assert code == 0
    [face] = made["faces"]
    assert face["fate"] == "put back"
    assert face["after"] <= face["before"]
    assert made["likeness_before"] == made["likeness_after"] == face["before"]
    assert "as it was" in made["report"][0]
    assert not changed(given).any()
    assert read_mark(given / "out.png") is None


def test_mode_strength_and_mask_act(given, redraw):
    who = ["--lora", given / "random.safetensors"]
    for more in (("--mode", "restore"), ("--mode", "swap"), ("--strength", "0.7"), ("--mask", given / "left.png")):
        output = f"{more[1]}.png" if more[0] != "--mask" else "left-out.png"
        code, said = redraw(*who, *more, output=output)
        assert code == 0, said
    restored, swapped, far = (load_photo(given / f"{name}.png") for name in ("restore", "swap", "0.7"))
    assert torch.equal(swapped, far)
    assert not torch.equal(swapped, restored)
    where = changed(given, "left-out.png")
    assert where.any()
    assert not where[:, where.shape[1] // 2 + 8 :].any()


def test_a_controlnet_is_shown_the_face_and_in_a_swap_the_reference(given, redraw):
    net = controls_of(tiny())["landmark"].net
    save_file(net.state_dict(), given / "control.safetensors")
    who = ["--identity", given / "ann.safetensors", "--landmark-control", given / "control.safetensors"]
    made = []
    for number, more in enumerate(
        (["--landmark-strength", "0"], [], ["--mode", "swap"], ["--mode", "swap", "--reference", given / "mirror.png"])
    ):
        code, said = redraw(*who, *more, "--strength", "0.5", output=f"control-{number}.png")
        assert code == 0, said
        made.append(load_photo(given / f"control-{number}.png"))
    off, on, swapped_on_itself, swapped = made
    assert not torch.equal(on, off)
    assert torch.equal(swapped_on_itself, on)
    assert not torch.equal(swapped, on)


def test_a_picture_without_a_face_stays(given, redraw):
    code, made = redraw("--identity", given / "ann.safetensors", picture="grey.png")
    assert code == 0
    assert made["faces"] == []
    assert made["report"][0].startswith("picture 1: no face found, nothing restored")
    assert torch.equal(load_photo(given / "out.png"), load_photo(given / "grey.png"))


def test_what_cannot_be_is_one_line(given, redraw):
    who = ["--identity", given / "ann.safetensors"]
    for arguments, line in (
        ([], "--lora, --identity: give one of them"),
        ([*who, "--reference", given / "in.png"], "--reference: give --recogniser too"),
        ([*who, "--reference", given / "in.png", "--mode", "swap"], "--reference: give --recogniser too"),
        ([*who, "--landmark-control", given / "ann.safetensors"], "not a ControlNet; take a whole"),
        ([*who, "--prompt", "{subject}"], "prompt: a model without a MagiCapture LoRA has no learned word"),
        (["--identity", given / "none.safetensors"], str(given / "none.safetensors")),
    ):
        code, said = redraw(*arguments)
        assert code == 2
        assert line in said
        assert said.count("\n") == 1


def test_the_prompt_names_whom_it_knows():
    learned, someone = make_artifact(), identity()
    assert fill_personal("a photo of {person}", None, None) == "a photo of a person"
    assert fill_personal("a photo of {person}", learned, None) == "a photo of <subject> person"
    both = fill_personal("{person} in the {style} style", learned, someone)
    assert both == "<person> in the <style> style"
