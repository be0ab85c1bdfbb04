"""Several people from the terminal: files and regions in, pictures out."""

import json
from pathlib import Path

import pytest
import torch

from magicapture_core import artifact
from magicapture_core.__main__ import main
from magicapture_core.backbone import tiny
from magicapture_core.group.people import Person
from magicapture_core.group.sampler import generate_group
from magicapture_core.images import load_mask, load_photo, save_image
from magicapture_core.marks import read_mark
from magicapture_core.sampler import generate
from magicapture_core.sefi import identity as identities
from tests.core.test_sefi_command import identity
from tests.small import random_artifact


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def people(backbone, tmp_path_factory):
    """The files of a LoRA and of an identity."""
    folder = tmp_path_factory.mktemp("people")
    return artifact.save(random_artifact(backbone), folder)[0], identities.save(identity(), folder / "identities")[0]


def group(folder, *people, **options):
    given = [part for person in people for part in ("--person", person)]
    given += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return list(map(str, ["group", *given, "--output", folder, "--num-steps", 2, "--device", "cpu"]))


def save_mask(path, columns, width=96):
    mask = torch.zeros(3, 64, width)
    mask[..., columns] = 1
    save_image(mask, path)
    return path


def test_a_layout_makes_the_first_steps(people, tmp_path, backbone):
    asked = group(tmp_path, *people, size="96x64", layout="a photo of two people", delay=1)
    assert main(asked) == 0
    plain = generate(backbone, None, "a photo of two people", num_steps=2, size=(64, 96))
    torch.testing.assert_close(load_photo(tmp_path / "group-0.png"), plain[0], atol=1 / 255, rtol=0)


def test_a_lora_and_an_identity_side_by_side(backbone, people, tmp_path, capsys):
    abouts = ("--about", "{person} smiling", "--about", "")
    arguments = group(tmp_path, *people, prompt="on a beach", size="96x64", count=2, seed=5)
    assert main([*arguments, *abouts, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["people"] == [
        {"name": "random", "text": "<subject> person smiling, on a beach"},
        {"name": "ann", "text": "a photo of <person>, on a beach"},
    ]
    assert [Path(file).name for file in made["images"]] == ["group-5.png", "group-6.png"]
    assert {read_mark(Path(file)) for file in made["images"]} == {"generated"}
    assert load_photo(Path(made["regions"])).shape == (3, 64, 96)

    left = (torch.arange(96) < 48).float().expand(1, 64, 96)
    both = [
        Person(made=artifact.load(people[0]), mask=left, prompt="{person} smiling"),
        Person(made=identities.load(people[1]), mask=1 - left),
    ]
    expected = generate_group(backbone, both, "on a beach", num_images=2, num_steps=2, seed=5, size=(64, 96))
    pictures = torch.stack([load_photo(Path(file)) for file in made["images"]])
    torch.testing.assert_close(pictures, expected, atol=1 / 255, rtol=0)


def test_masks_and_boxes_say_where(people, tmp_path, capsys):
    """The same regions either way; other ones make another picture."""
    masks = [save_mask(tmp_path / f"{i}.png", columns) for i, columns in enumerate((slice(0, 24), slice(48, 96)))]
    assert load_mask(masks[0]).sum() == 64 * 24

    def picture(*more):
        assert main([*group(tmp_path, *people, size="96x64", count=1), *map(str, more), "--json"]) == 0
        return load_photo(Path(json.loads(capsys.readouterr().out)["images"][0]))

    painted = picture("--mask", masks[0], "--mask", masks[1])
    assert torch.equal(painted, picture("--boxes", "0,0,.25,1; .5,0,1,1"))
    assert not torch.equal(painted, picture())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--about", "one"], "--about: give it once for each --person, in the same order"),
        (["--boxes", "0,0,1,1"], "--boxes: there are 1 for 2 people; give one for each --person"),
        (["--mask", "left.png"], "--mask: there are 1 for 2 people; give one for each --person"),
        (["--mask", "left.png", "--boxes", "0,0,1,1"], "--mask, --boxes: give one of them"),
        (["--mask", "left.png", "--mask", "wide.png"], "the regions are of different sizes, 96x64 and 128x64"),
        (["--mask", "left.png", "--mask", "nothing.png"], "nothing.png"),
        (["--boxes", "0,0,1"], "'0,0,1' is no box"),
        (["--person", "nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_bad_input_is_exit_code_two_and_one_line(people, tmp_path, monkeypatch, capsys, more, named):
    monkeypatch.chdir(tmp_path)
    save_mask(Path("left.png"), slice(0, 48))
    save_mask(Path("wide.png"), slice(0, 48), 128)
    assert main([*group("out", *people), *more]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()


@pytest.mark.parametrize("size", ["96", "96x", "x64", "100x64", "0x64", "-8x64"])
def test_a_size_is_width_and_height_in_eights(people, tmp_path, capsys, size):
    with pytest.raises(SystemExit) as stopped:
        main(group(tmp_path, *people, size=size))
    assert stopped.value.code == 2
    assert "--size" in capsys.readouterr().err
