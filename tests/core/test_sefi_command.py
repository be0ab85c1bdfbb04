"""SeFi-IDE from the terminal: a photo, an identity, pictures, where its word looks, what is kept and forgotten."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from magicapture_core import artifact
from magicapture_core.__main__ import build_parser, main
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode
from magicapture_core.images import load_photo
from magicapture_core.marks import read_mark
from magicapture_core.models import FACE_NETS
from magicapture_core.recipe import to_artifact
from magicapture_core.sefi.command import read_config
from magicapture_core.sefi.identity import SefiIdentity, load, save
from magicapture_core.sefi.photos import frame_photos
from magicapture_core.sefi.prompts import everybody, fill_people, told_apart
from magicapture_core.trainer import open_run
from magicapture_core.types import MagiCaptureError
from tests.core.test_artifact import make_artifact
from tests.small import portraits, small_config

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "magicapture_core" / "tiny" / "samples" / "person_1.jpg"


@pytest.fixture(autouse=True)
def no_face_networks(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path / "no models"))


@pytest.fixture
def run(capsys):
    """A command, whose JSON it returns."""

    def command(*arguments):
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return command


def sefi(folder, *more, name="someone"):
    return ["sefi", "--photo", str(SAMPLE), "--output", str(folder), "--name", name, "--device", "cpu", *more]


def identity(name="ann", placeholder="<person>"):
    return SefiIdentity(
        name=name,
        architecture="magicapture-tiny",
        placeholder=placeholder,
        initializer="person",
        stages=torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0)),
        template="a photo of the face of {person}",
    )


def test_a_photo_an_identity_pictures_attention_inspect_forget(run, tmp_path, capsys):
    made = run(*sefi(tmp_path, "--steps", 2, "--look-every", 2))
    assert made["model"] == "magicapture-tiny"
    assert "tiny" in made["note"]
    assert made["prompt"] == "a photo of <person> wearing glasses"
    assert (made["steps"], made["resumed_from_step"]) == (2, 0)
    assert made["photos"][0].startswith("+ person_1.jpg: took the photo's middle, 640 pixels: no face networks")
    assert all(Path(made[file]).is_file() for file in ("identity", "embedding", "preview"))
    assert len(list(Path(made["looks"]).iterdir())) == 1

    sampling = ("--output", tmp_path / "out", "--num-steps", 2, "--device", "cpu")
    own = ("--identity", made["identity"], *sampling)
    pictures = run("generate", *own, "--count", 2)
    assert pictures["prompt"] == "a photo of the face of <person>"
    assert [load_photo(Path(file)).shape for file in pictures["images"]] == [(3, 64, 64)] * 2
    assert {read_mark(Path(file)) for file in pictures["images"]} == {"generated"}
    assert run("generate", *own, "--prompt", "{person} smiling")["prompt"] == "<person> smiling"
    looked = run("attention", *own, "--prompt", "a photo of <person> wearing glasses", "--words", "{person},glasses")
    assert looked["words"] == ["<person>", "glasses"]
    assert all(Path(looked[sheet]).is_file() for sheet in ("overlay", "steps", "resolutions"))
    assert run("attention", *own)["words"] == ["<person>"]

    told = run("inspect", made["identity"])
    assert (told["kind"], told["architecture"], told["stages"]) == ("sefi-identity", "magicapture-tiny", 5)
    assert (told["preview"], told["plain_embedding"]) == ("someone.preview.png", "someone_sefi.safetensors")
    assert told["keys_and_values_differ"]
    assert main(["inspect", made["identity"]]) == 0
    assert "\nsentence: a photo of the face of <person>\n" in capsys.readouterr().out

    deleted = run("forget", "someone", "--output", tmp_path)["deleted"]
    assert [Path(path).name.split("-")[0] for path in deleted] == ["looks", "result", "samples"]
    assert all(Path(made[file]).is_file() for file in ("identity", "embedding", "preview"))


def test_an_identity_in_the_style_of_a_lora(run, tmp_path):
    """The case that neither paper has: whose face it is from one photo, the style from a LoRA."""
    backbone, config = tiny(), small_config()
    photos = encode(backbone, {"subject": portraits(1), "style": portraits(1)}, config)
    with open_run(backbone, photos, config) as begun:
        begun.begin("tuning", {}, midway=False)
        lora, *_ = artifact.save(to_artifact(begun, "inked"), tmp_path)
    file, _ = save(identity(), tmp_path / "identities")
    both = ("--lora", lora, "--identity", file, "--output", tmp_path, "--num-steps", 2, "--device", "cpu")
    assert run("generate", *both, "--count", 1)["prompt"] == "A photo of <person> in the {style} style"
    assert run("attention", *both, "--prompt", "{person}, {subject}, {style}")["words"][-1] == "<person>"


def test_people_with_the_same_word_are_told_apart(run, tmp_path):
    files = [save(identity(name), tmp_path)[0] for name in ("ann", "bob")]
    people = [part for file in files for part in ("--identity", file)]
    sampling = ("--output", tmp_path, "--num-steps", 2, "--device", "cpu", "--count", 1)
    assert run("generate", *people, *sampling, "--prompt", "{person} and {person_2}")["prompt"] == (
        "<person> and <person_2>"
    )
    sentence = run("generate", *people, *sampling)["prompt"]
    assert sentence == "a photo of the face of <person> and <person_2>"
    words = ["<person>", "<person>", "<person_2>", "<ann>"]
    given = told_apart([identity(placeholder=word) for word in words])
    assert [one.placeholder for one in given] == ["<person>", "<person_2>", "<person_2_2>", "<ann>"]
    assert [one.placeholder for one in told_apart(given[:1], ["<person>"])] == ["<person_2>"]
    assert everybody(3) == "{person}, {person_2} and {person_3}"
    assert fill_people("{person_4} {subject} {person}", given) == "<ann> {subject} <person>"
    with pytest.raises(MagiCaptureError, match=r"prompt: \{person_2\} has no identity"):
        fill_people("{person_2}", given[:1])


def test_ctrl_c_is_130_with_a_state_that_resume_goes_on_from(run, tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text('parts = "vectors"\naccumulate = 1\nbatch_size = 1\nnum_steps = 100\n', encoding="utf-8")
    arguments = sefi(tmp_path, "--config", str(settings), "--look-every", "100")
    process = subprocess.Popen(
        [sys.executable, "-m", "magicapture_core", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    while "phase=identity" not in said:
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command with --resume goes on" in rest
    assert not list(tmp_path.glob("*.safetensors"))
    assert run(*arguments, "--resume")["resumed_from_step"] > 0


def test_what_became_of_the_photos_is_told_before_the_training(tmp_path, capsys):
    assert main(sefi(tmp_path, "--steps", "1")) == 0
    said = capsys.readouterr().err
    assert 0 < said.index("took the photo's middle") < said.index("estimate: ")


def test_a_face_network_that_is_damaged_is_no_missing_one(tmp_path, monkeypatch, capsys):
    nets = tmp_path / "models" / "faces"
    nets.mkdir(parents=True)
    for name in FACE_NETS:
        (nets / f"{name}.npz").write_bytes(b"damaged")
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(nets.parent))
    assert main(sefi(tmp_path, "--steps", "1")) == 2
    assert f"{FACE_NETS[0]}.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sefi", "--photo", "nothing.jpg", "--output", ".", "--name", "x"], "nothing.jpg: there is no such file"),
        (["generate", "--output", "."], "--lora, --identity: give one of them, or both"),
        (["generate", "--identity", "nothing.safetensors", "--output", "."], "nothing.safetensors"),
        ([*sefi(Path("out")), "--recogniser", "net.onnx"], "models get faces"),
        ([*sefi(Path("out")), "--class-word", "grandmother"], "initializer_token"),
        ([*sefi(Path("out")), "--patience", "2", "--steps", "2"], "patience: nobody could tell"),
    ],
)
def test_bad_input_is_exit_code_two_and_one_line(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert named in said[-1]


def test_a_lora_is_no_identity_and_an_identity_no_lora(tmp_path, capsys):
    lora, file = artifact.save(make_artifact(), tmp_path)[0], save(identity(), tmp_path / "other")[0]
    assert main(["generate", "--identity", str(lora), "--output", str(tmp_path)]) == 2
    assert "no identity made by MagiCapture" in capsys.readouterr().err
    assert main(["generate", "--lora", str(file), "--output", str(tmp_path)]) == 2
    remedy = "this is an identity: load it with Load SeFi Identity (--identity on the terminal)"
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{file.name}: {remedy}")


def test_settings_come_from_the_models_preset_then_file_then_flags(tmp_path):
    settings = tmp_path / "run.toml"
    settings.write_text("num_steps = 7\nattention_weight = 0.01\nseed = 3\n", encoding="utf-8")

    def config(*more):
        return read_config(build_parser().parse_args(sefi(tmp_path, "--config", str(settings), *more)))

    tiny = config("--steps", "9", "--class-word", "woman")
    assert (tiny.num_steps, tiny.attention_weight, tiny.seed, tiny.initializer_token) == (9, 0.01, 3, "woman")
    assert (tiny.resolution, tiny.accumulate) == (64, 8)
    true = config("--checkpoint", "sd15.safetensors", "--seed", "4")
    assert (true.num_steps, true.seed, true.resolution, true.accumulate) == (7, 4, 512, 1)


# -- photos ------------------------------------------------------------------------------------------------------------


def test_without_a_detector_the_middle_is_taken():
    image = torch.rand(3, 40, 100, generator=torch.Generator().manual_seed(0))
    portraits, [note] = frame_photos([("wide.png", image)], 40, None)
    assert torch.equal(portraits.images[0], image[:, :, 30:70])
    assert (note.used, portraits.faces[0].landmarks) == (True, None)
    assert note.text.startswith("took the photo's middle, 40 pixels: no face networks")
    with pytest.raises(MagiCaptureError, match="no photo is left"):
        frame_photos([], 40, None)


def test_a_face_is_framed_and_a_photo_without_one_comes_along(detector, astronaut):
    """In their order; the face keeps its landmarks, which the likeness needs."""
    chair = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    portraits, notes = frame_photos([("chair.png", chair), ("ann.png", astronaut)], 64, detector)
    assert portraits.images.shape == (2, 3, 64, 64)
    assert [face.landmarks is not None for face in portraits.faces] == [False, True]
    assert [face.file_name for face in portraits.faces] == ["chair.png", "ann.png"]
    assert notes[0].text == "took the photo's middle, 96 pixels: no face found"
    assert notes[1].text.startswith("one face")
    assert all(note.used for note in notes)


def test_a_photo_that_cannot_be_read_is_told_and_the_others_train(run, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    made = run(*sefi(tmp_path, "--photo", broken, "--steps", 1))
    assert [line[0] for line in made["photos"]] == ["-", "+"]
    assert load(Path(made["identity"])).stages.shape[:2] == (5, 2)
