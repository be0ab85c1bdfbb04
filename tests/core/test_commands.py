"""The terminal as a user has it: a process, its exit code, its two streams."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_pre_hook

from magicapture_core.__main__ import build_parser, main
from magicapture_core.artifact import save
from magicapture_core.backbone import tiny
from magicapture_core.commands import output_names
from magicapture_core.config import TrainConfig
from magicapture_core.images import list_photos, load_photo, save_image
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.kept import TERMS
from magicapture_core.marks import read_mark
from magicapture_core.terminal import read_portraits
from magicapture_core.train_command import read_config
from magicapture_core.types import MagiCaptureError
from tests import onnx_files
from tests.core.test_artifact import make_artifact
from tests.small import small_dino, small_restoreformer

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "magicapture_core" / "tiny" / "samples"
STEPS = ("--inversion-steps", "2", "--tuning-steps", "2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two folders of noise with masks: no detector is needed."""
    folder = tmp_path_factory.mktemp("photos")
    for side, count in (("subject", 2), ("style", 2)):
        for index in range(count):
            generator = torch.Generator().manual_seed(index)
            save_image(torch.rand(3, 96, 96, generator=generator), folder / side / f"{index}.png")
            mask = torch.zeros(3, 96, 96)
            mask[:, 24:64, 28:68] = 1
            save_image(mask, folder / f"{side}-masks" / f"{index}.png")
    return folder


def train_arguments(photos, output, *more):
    sides = [part for side in ("subject", "style") for part in (f"--{side}", str(photos / side))]
    masks = [part for side in ("subject", "style") for part in (f"--{side}-masks", str(photos / f"{side}-masks"))]
    return ["train", *sides, *masks, "--output", str(output), "--name", "someone", "--device", "cpu", *more]


def test_train_generate_attention_inspect_unpack(photos, tmp_path, capsys):
    """The line from photos to pictures, with machine-readable results on standard output alone."""

    def run(*arguments):
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    trained = run(*train_arguments(photos, tmp_path, *STEPS))
    assert trained["model"] == "magicapture-tiny"
    assert "tiny" in trained["note"]
    assert all(Path(file).is_file() for file in [trained["lora"], *trained["embeddings"]])

    sampling = ("--lora", trained["lora"], "--output", tmp_path / "out", "--num-steps", 2, "--device", "cpu")
    pictures = run("generate", *sampling, "--count", 2)["images"]
    assert [load_photo(Path(file)).shape for file in pictures] == [(3, 64, 64)] * 2
    looked = run("attention", *sampling)
    assert looked["words"] == ["<subject>", "<style>"]
    assert all(Path(looked[sheet]).is_file() for sheet in ("overlay", "steps", "resolutions"))

    assert {read_mark(Path(file)) for file in (*pictures, looked["overlay"], looked["steps"], trained["preview"])} == {
        "generated"
    }

    assert run("inspect", trained["lora"])["architecture"] == "magicapture-tiny"
    assert len(run("unpack", trained["lora"], "--output", tmp_path / "words")["embeddings"]) == 2


def test_split_adapters_from_training_to_a_mix(photos, tmp_path, capsys):
    """Trained, told by inspect, the style taken out and used without the person, and two runs mixed."""
    settings = tmp_path / "run.toml"
    settings.write_text('[lora]\nadapters = "split"\nlora_rank = 4\nlora_alpha = 4.0\n', encoding="utf-8")

    def run(*arguments):
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    trained = run(*train_arguments(photos, tmp_path, *STEPS, "--config", settings))["lora"]
    told = run("inspect", trained)
    assert (told["rank_split"], told["lora_rank"]) == ({"subject": 4, "style": 4}, [8])
    style = run("extract", trained, "--concept", "style", "--output", tmp_path)["lora"]
    told = run("inspect", style)
    assert (told["name"], told["rank_split"], told["lora_rank"]) == ("someone_style_only", {"style": 4}, [4])
    assert [token["name"] for token in told["tokens"]] == ["style"]
    sampling = ("--output", tmp_path / "out", "--num-steps", 2, "--device", "cpu")
    assert run("generate", "--lora", style, *sampling, "--prompt", "a person in the {style} style")["images"]
    assert main(["generate", "--lora", style, *map(str, sampling)]) == 2
    assert "{subject}" in capsys.readouterr().err
    mixed = run("mix", "--subject", trained, "--style", style, "--output", tmp_path, "--name", "both")["lora"]
    assert run("generate", "--lora", mixed, *sampling)["images"]


def test_a_recogniser_takes_part_where_faces_are_known(photos, tmp_path, capsys, detector):
    """On the pack's own sample pictures, whose faces are found; photos with masks alone are refused in one line."""
    network, output = onnx_files.small_network()
    recogniser = tmp_path / "net.onnx"
    recogniser.write_bytes(network.file(output))
    sides = {"subject": "person", "style": "style"}
    for side, name in sides.items():
        (tmp_path / side).mkdir()
        for sample in sorted(SAMPLES.glob(f"{name}_*.jpg"))[:2]:
            shutil.copy(sample, tmp_path / side)
    folders = [part for side in sides for part in (f"--{side}", str(tmp_path / side))]
    arguments = ["train", *folders, "--output", str(tmp_path), "--name", "known", "--device", "cpu", *STEPS, "--json"]
    histories = []
    for more in ([], ["--recogniser", str(recogniser)]):
        assert main([*arguments, *more]) == 0
        capsys.readouterr()
    for kept in (tmp_path / "magicapture" / "known").glob("result-*.json"):
        histories.append(json.loads(kept.read_text())["history"])
    terms = sorted(sum(row[TERMS.index("identity")] for row in history) for history in histories)
    assert terms[0] == 0 < terms[1]

    assert main([*train_arguments(photos, tmp_path, *STEPS), "--recogniser", str(recogniser)]) == 2
    assert "no subject photo has a face with known landmarks" in capsys.readouterr().err


def test_each_training_has_a_folder_of_samples(photos, tmp_path, capsys):
    """Of one name and other settings: the pictures of two steps and those of one do not mix."""
    for tuning_steps in (1, 0):
        steps = ("--inversion-steps", "1", "--tuning-steps", str(tuning_steps))
        assert main(train_arguments(photos, tmp_path, *steps, "--json")) == 0
        folder = Path(json.loads(capsys.readouterr().out)["samples"])
        assert folder.parent == tmp_path / "magicapture" / "someone"
        assert len(list(folder.iterdir())) == 1 + tuning_steps


def test_bad_input_is_exit_code_two_and_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nothing.safetensors")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "nothing.safetensors" in captured.err


def test_ctrl_c_is_130_with_a_state_that_resume_goes_on_from(photos, tmp_path, capsys):
    steps = ("--inversion-steps", "3", "--tuning-steps", "4000")
    command = [sys.executable, "-u", "-m", "magicapture_core", *train_arguments(photos, tmp_path, *steps)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "tuning" not in said:  # the bar names the phase: both have begun
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "--resume" in rest
    [state] = (tmp_path / "magicapture" / "someone").glob("state-*.safetensors")
    assert state.is_file()


def test_out_of_memory_is_one_line_with_a_state_that_resume_goes_on_from(photos, tmp_path, capsys):
    """In the third step, and in the second try at it: an estimate makes one pass, and each step of phase 1 two."""
    passes = []

    def run_out(module, inputs):
        if type(module).__name__ == "UNet2DConditionModel" and torch.is_grad_enabled():  # no preview
            passes.append(module)
            if len(passes) > 5:
                raise torch.OutOfMemoryError("no GPU has this much")

    arguments = train_arguments(photos, tmp_path, "--inversion-steps", "4", "--tuning-steps", "0")
    with register_module_forward_pre_hook(run_out):
        assert main(arguments) == 2
    said = capsys.readouterr().err
    for batch_size in (6, 3, 1):
        assert f"out of memory: goes on with gradient_checkpointing and batch_size {batch_size};" in said
    assert "magicapture train: out of memory, with gradient_checkpointing and batch_size 1 too: " in said
    assert main([*arguments, "--resume"]) == 0
    said = capsys.readouterr()
    assert "goes on at step 3" in said.err
    assert "resumed_from_step: 2\n" in said.out


def test_out_of_memory_while_sampling_is_one_line(photos, tmp_path, capsys):
    def run_out(module, inputs):
        if type(module).__name__ == "UNet2DConditionModel":
            raise torch.OutOfMemoryError("no GPU has this much")

    assert main(train_arguments(photos, tmp_path, *STEPS)) == 0
    capsys.readouterr()
    with register_module_forward_pre_hook(run_out):
        assert main(["generate", "--lora", str(tmp_path / "someone.safetensors"), "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("magicapture generate: out of memory: ")


def test_resumed_once_more_a_finished_training_is_told_and_left_as_it_is(photos, tmp_path, capsys):
    arguments = train_arguments(photos, tmp_path, *STEPS, "--json")
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--resume"]) == 0
    said = capsys.readouterr()
    again = json.loads(said.out)
    assert again == first | {"resumed_from_step": first["steps"]}
    assert "Nothing has changed since the last training" in said.err
    assert not list(tmp_path.glob("someone_2*"))


def test_settings_come_from_preset_then_file_then_flags(tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text("seed = 5\naccumulate = 2\n[tuning]\nnum_steps = 10\nlora_learning_rate = 2e-4\n")
    assert tomllib.loads(toml.read_text())["seed"] == 5
    arguments = [*train_arguments(tmp_path, tmp_path, "--config", str(toml), "--preset", "paper")]
    parsed = build_parser().parse_args([*arguments, "--checkpoint", "x.safetensors", "--tuning-steps", "20"])
    config = read_config(parsed)
    assert (config.seed, config.accumulate, config.inversion.num_steps) == (5, 2, 1200)
    assert (config.tuning.num_steps, config.tuning.lora_learning_rate) == (20, 2e-4)


def test_without_a_preset_it_is_that_of_the_model(tmp_path):
    arguments = train_arguments(tmp_path, tmp_path)
    assert read_config(build_parser().parse_args(arguments)) == TrainConfig.preset("tiny")
    arguments += ["--checkpoint", "x.safetensors"]
    assert read_config(build_parser().parse_args(arguments)) == TrainConfig.preset("standard")


def test_a_taesd_goes_with_a_checkpoint_and_a_recogniser(tmp_path):
    arguments = train_arguments(tmp_path, tmp_path, "--taesd", "taesd_decoder.pth", "--checkpoint", "x.safetensors")
    whole = build_parser().parse_args([*arguments, "--recogniser", "w600k_r50.onnx"])
    assert read_config(whole).loss.identity_decoder == "taesd"
    for lacking in ({"checkpoint": None}, {"recogniser": None}):
        with pytest.raises(MagiCaptureError, match=r"^--taesd: "):
            read_config(argparse.Namespace(**{**vars(whole), **lacking}))


def test_a_preset_for_the_tiny_model_is_refused(photos, tmp_path, capsys):
    assert main(train_arguments(photos, tmp_path, "--preset", "quick")) == 2
    said = capsys.readouterr().err
    assert said.startswith("magicapture train: --preset: ")
    assert said.count("\n") == 1


def test_a_pet_is_called_by_its_word(photos, tmp_path, capsys):
    """With DINO; the file keeps its sentences, and pictures are made from them by default."""
    save_file(small_dino().state_dict(), tmp_path / "dino.safetensors")
    more = ("--object", "cat", "--object-features", str(tmp_path / "dino.safetensors"), "--json")
    assert main(train_arguments(photos, tmp_path, *STEPS, *more)) == 0
    trained = json.loads(capsys.readouterr().out)
    sampling = ("--lora", trained["lora"], "--output", str(tmp_path / "out"), "--num-steps", "1", "--device", "cpu")
    assert main(["generate", *sampling, "--count", "1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["prompt"] == "A photo of a {subject} cat in the {style} style"
    arguments = build_parser().parse_args(train_arguments(photos, tmp_path, "--object", "cat"))
    assert read_config(arguments).subject.placeholder_token == "<subject>"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--object-features", "dino.pth", "--recogniser", "r50.onnx"), "leave one of them out"),
        (("--object", "person"), "subject.initializer_token"),
    ],
)
def test_what_does_not_go_with_an_object_is_one_line(photos, tmp_path, capsys, more, named):
    assert main(train_arguments(photos, tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


def test_an_object_needs_masks(photos, tmp_path, capsys):
    arguments = train_arguments(photos, tmp_path, "--object", "cat")
    at = arguments.index("--subject-masks")
    assert main(arguments[:at] + arguments[at + 2 :]) == 2
    assert "--subject-masks: give a folder" in capsys.readouterr().err


def test_a_misspelt_setting_is_named(photos, tmp_path, capsys):
    toml = tmp_path / "run.toml"
    toml.write_text("sead = 5\n")
    assert main(train_arguments(photos, tmp_path, "--config", str(toml))) == 2
    assert "sead" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(photos, tmp_path, capsys):
    arguments = train_arguments(photos, tmp_path, *STEPS)
    arguments[arguments.index("cpu")] = "nonsense"
    assert main(arguments) == 2
    assert "--device nonsense" in capsys.readouterr().err


def test_a_broken_mask_leaves_out_its_photo_alone(photos, tmp_path):
    shutil.copytree(photos / "subject-masks", tmp_path / "masks")
    (tmp_path / "masks" / "0.png").write_bytes(b"no picture")
    portraits, notes = read_portraits(photos / "subject", tmp_path / "masks", 64, "subject")
    assert [face.file_name for face in portraits.faces] == ["1.png"]
    assert [note.used for note in notes if note.file_name == "0.png"] == [False]


def test_photos_of_one_stem_keep_apart(tmp_path, astronaut, detector):
    """a.jpg and a.png: none overwrites the other, and each file tells its photo."""
    for name in ("a.jpg", "a.png", "b.png"):
        save_image(astronaut, tmp_path / "photos" / name)
    assert main(["masks", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--resolution", "64"]) == 0
    for folder in ("", "masks", "overlays"):
        written = sorted(file.name for file in (tmp_path / "out" / folder).glob("*.png"))
        assert written == ["a.jpg.png", "a.png.png", "b.png.png"]
    assert output_names(["a.jpg", "b.png"]) == ["a.png", "b.png"]
    assert output_names(["A.jpg", "a.png"]) == ["A.jpg.png", "a.png.png"]


def test_masks_tell_what_is_wrong_and_show_every_photo(tmp_path, astronaut, detector, capsys):
    """A photo that cannot be used is on the sheet; one that can be but is dark and there twice says so."""
    for name, image in (("a", astronaut), ("b", astronaut * 0.3), ("c", torch.rand(3, 99, 60))):
        save_image(image, tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "d.png").write_bytes(b"no picture")
    arguments = ["masks", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--resolution", "64", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    said = {line[2]: line for line in told["photos"]}
    assert "usable" not in said["a"]
    assert said["b"].endswith("; usable: dark, the same picture as a.png")
    assert said["c"] == "- c.png: no face found"
    assert said["d"].startswith("- d.png: cannot be read")
    sheet = load_photo(Path(told["contact_sheet"]))
    assert sheet.shape[2] > 3 * 256
    assert [path.name for path in list_photos(tmp_path / "out")] == ["a.png", "b.png"]  # what `train --subject` takes


def test_where_no_photo_can_be_used_the_sheet_is_there(tmp_path, capsys):
    """Then it is needed most. Each photo is decoded once; without one that can be read there is nothing to show."""
    output = tmp_path / "out"
    arguments = ["masks", str(tmp_path / "photos"), "--output", str(output), "--resolution", "64"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "d.png").write_bytes(b"no picture")
    assert main(arguments) == 2
    assert "no photo can be used (d.png: cannot be read" in capsys.readouterr().err
    assert not output.exists()
    for name in ("a", "b"):
        save_image(torch.rand(3, 99, 60), tmp_path / "photos" / f"{name}.png")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a.png: no face found; b.png: no face found" in said
    sheet = output / "overlays" / "contact-sheet.jpg"
    assert f"see {sheet}" in said
    assert [path for path in output.rglob("*") if path.is_file()] == [sheet]
    assert load_photo(sheet).shape[2] > 2 * 256


@pytest.mark.parametrize("folder", ["subject", "subject-masks"])
def test_two_photos_or_masks_of_one_stem_are_named(photos, tmp_path, capsys, folder):
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / folder / "0.png", tmp_path / "photos" / folder / "0.jpg")
    assert main(train_arguments(tmp_path / "photos", tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path / 'photos' / folder}: 0.jpg and 0.png share" in said


@pytest.fixture(scope="module")
def finishing(tmp_path_factory, astronaut, detector):
    """A photo, a folder of reference photos, a face restorer and a face recogniser, both small and random."""
    pytest.importorskip("spandrel")
    folder = tmp_path_factory.mktemp("finishing")
    save_image(astronaut, folder / "in.png")
    for name in ("a.png", "b.jpg"):
        save_image(astronaut, folder / "reference" / name)
    small_restoreformer(folder / "RestoreFormer.pth")
    torch.manual_seed(0)
    save_file(IResNet(BLOCKS[18], 8, num_features=16).state_dict(), folder / "iresnet.safetensors")
    return folder


def finish(folder, *more):
    restorer = ("--restorer", folder / "RestoreFormer.pth", "--scale", "1.25")
    return main(
        [str(part) for part in ("restore", folder / "in.png", "--output", folder / "out.png", *restorer, *more)]
    )


@pytest.mark.parametrize("reference", ["reference", "in.png"])
def test_restore_puts_a_lost_face_back_and_tells(finishing, capsys, reference):
    compared = ("--recogniser", finishing / "iresnet.safetensors", "--reference", finishing / reference)
    assert finish(finishing, *compared, "--max-likeness-loss", "0", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    [face] = made["faces"]
    assert face["fate"] == "put back"
    assert face["after"] < face["before"] == made["likeness_before"] == made["likeness_after"]
    assert made["size"] == [640, 640]
    assert f"likeness {face['before']:.3f} -> {face['after']:.3f}" in made["report"][1]
    back = load_photo(finishing / "out.png")
    assert read_mark(finishing / "out.png") is None
    assert finish(finishing, *compared, "--max-likeness-loss", "2", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert read_mark(finishing / "out.png") == "retouched"
    assert made["faces"][0]["fate"] == "restored"
    assert made["likeness_after"] == made["faces"][0]["after"]
    assert not torch.equal(load_photo(finishing / "out.png"), back)
    assert finish(finishing, "--face-index", "7") == 0
    said = capsys.readouterr().out
    assert "likeness: not checked" in said
    assert "face_index names none of them" in said
    assert torch.equal(load_photo(finishing / "out.png"), back)


def test_restore_matches_colours_unless_told_not_to(finishing, astronaut):
    shifts = []
    for more in ((), ("--no-match-colour",)):
        assert finish(finishing, *more, "--scale", "1") == 0
        shifts.append(float((load_photo(finishing / "out.png") - astronaut).mean((1, 2)).abs().max()))
    assert shifts[0] < 0.1 * shifts[1]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--recogniser", "r50.onnx"), "--recogniser: give --reference too"),
        (("--reference", "in.png"), "--reference: give --recogniser too"),
        (("--recogniser", "in.png", "--reference", "in.png"), "in.png: face recognisers end in"),
        (("--upscaler", "RestoreFormer.pth"), "upscale model: RestoreFormer restores faces"),
    ],
)
def test_what_restore_cannot_compare_is_one_line(finishing, capsys, monkeypatch, more, named):
    monkeypatch.chdir(finishing)
    assert finish(finishing, *more) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


def test_restore_runs_where_it_is_told_to(finishing, capsys):
    """On a device without numbers nothing can be restored; and on one that is not there, what to do is said."""
    with pytest.raises(RuntimeError, match="meta"):
        finish(finishing, "--device", "meta")
    assert finish(finishing, "--device", "cuda:99") == 2
    assert "--device cuda:99: " in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["0", "0.5", "-1", "nan", "inf", "much"])
def test_a_scale_that_is_none_is_refused(finishing, capsys, scale):
    with pytest.raises(SystemExit) as stopped:
        finish(finishing, "--scale", scale)
    assert stopped.value.code == 2
    assert "--scale" in capsys.readouterr().err


def test_every_command_explains_itself(capsys):
    names = (
        "demo",
        "masks",
        "train",
        "generate",
        "attention",
        "restore",
        "inspect",
        "strip",
        "export",
        "forget",
        "unpack",
    )
    for name in (*names, "extract", "mix", "models"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        assert "usage" in capsys.readouterr().out


def test_models_lists_each_with_its_licence(capsys):
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert {"file", "there", "purpose", "licence", "get"} == set(listed[0])
    assert any("non-commercial" in model["licence"] for model in listed)


def test_models_says_whether_a_face_net_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path))
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "facemesh.npz").touch()
    assert main(["models", "--json"]) == 0
    there = {Path(model["file"]).name: model["there"] for model in json.loads(capsys.readouterr().out)["models"]}
    assert (there["facemesh.npz"], there["blazeface_full.npz"], there["vocab.json"]) == (True, False, False)


def test_two_people_in_one_training(photos, tmp_path, capsys):
    more = ("--subject", str(photos / "style"), "--subject-masks", str(photos / "style-masks"))
    assert main([*train_arguments(photos, tmp_path, *STEPS), *more, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(file).stem for file in told["embeddings"]] == ["someone_subject", "someone_subject_2", "someone_style"]
    sampling = ("--output", str(tmp_path / "out"), "--num-steps", "1", "--count", "1", "--device", "cpu")
    prompt = "A photo of {subject_2} person in the {style} style"
    assert main(["generate", "--lora", told["lora"], *sampling, "--prompt", prompt]) == 0
    assert main([*train_arguments(photos, tmp_path, *STEPS), *more[:2]]) == 2
    assert "--subject-masks: give it once for each --subject" in capsys.readouterr().err


def test_a_config_that_is_no_text_is_named(photos, tmp_path, capsys):
    settings = tmp_path / "run.toml"
    settings.write_text('subject = "dog"', encoding="utf-16")
    assert main([*train_arguments(photos, tmp_path, *STEPS), "--config", str(settings)]) == 2
    assert "has to be TOML in UTF-8" in capsys.readouterr().err
    settings.write_text('subject = "dog"', encoding="utf-8")
    assert main([*train_arguments(photos, tmp_path, *STEPS), "--config", str(settings), "--object", "dog"]) == 2
    assert "settings: " in capsys.readouterr().err


def test_words_without_photos_are_named(photos, tmp_path, capsys):
    settings = tmp_path / "run.toml"
    settings.write_text('[[more_subjects]]\nplaceholder_token = "<bob>"\ninitializer_token = "man"', encoding="utf-8")
    assert main([*train_arguments(photos, tmp_path, *STEPS), "--config", str(settings)]) == 2
    assert "photos are given of subject, style, and the settings have words for" in capsys.readouterr().err


def test_what_a_photo_and_its_masks_are_is_not_marked(tmp_path, astronaut, detector):
    save_image(astronaut, tmp_path / "photos" / "a.jpg")
    assert main(["masks", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--resolution", "64"]) == 0
    written = list((tmp_path / "out").rglob("*.png"))
    assert len(written) == 3
    assert {read_mark(file) for file in written} == {None}


def test_a_picture_that_a_network_has_enlarged_is_marked_as_retouched(tmp_path):
    """A generated one stays generated; one that no network has touched stays as it was."""
    compact = pytest.importorskip("spandrel.architectures.Compact").Compact
    upscaler = tmp_path / "x2.safetensors"
    save_file(compact(num_feat=8, num_conv=1, upscale=2).state_dict(), upscaler)
    picture = torch.rand(3, 24, 16, generator=torch.Generator().manual_seed(0))
    photo, made = save_image(picture, tmp_path / "photo.png"), save_image(picture, tmp_path / "made.png", "generated")

    def restored(image, *more, suffix="jpg"):
        output = tmp_path / f"out.{suffix}"
        assert main(["restore", str(image), "--output", str(output), *map(str, more)]) == 0
        return read_mark(output)

    assert restored(photo, "--upscaler", upscaler) == "retouched"
    assert restored(made, "--upscaler", upscaler, suffix="png") == "generated"
    assert restored(photo) is None
    assert restored(made) == "generated"
    assert main(["restore", str(photo), "--output", str(tmp_path / "out.bmp"), "--upscaler", "none.pth"]) == 2


def test_forget_says_what_it_deleted_and_leaves_the_lora(photos, tmp_path, capsys):
    assert main(train_arguments(photos, tmp_path, *STEPS)) == 0
    assert "the command forget deletes it" in capsys.readouterr().out
    forget = ["forget", "someone", "--output", str(tmp_path), "--json"]
    assert main(forget) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name.split("-")[0] for path in told["deleted"]] == ["looks", "result", "samples"]
    assert not (tmp_path / "magicapture" / "someone").exists()
    assert {file.name for file in tmp_path.glob("someone*")} == {
        "someone.safetensors", "someone.preview.png", "someone_subject.safetensors", "someone_style.safetensors",
    }  # fmt: skip
    assert main(forget) == 2
    assert "nothing is kept there" in capsys.readouterr().err
    assert main(["forget", "../someone", "--output", str(tmp_path)]) == 2


def test_strip_and_export_from_the_terminal(tmp_path, capsys):
    path = save(make_artifact(), tmp_path)[0]
    assert main(["strip", str(path), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"lora: {tmp_path / 'out' / 'anna.safetensors'}\n"
    assert main(["export", "--a1111", str(path), "--output", str(tmp_path / "webui")]) == 0
    assert "prompt: <lora:anna:1> A photo of a anna_subject person in the anna_style style\n" in capsys.readouterr().out
    assert (tmp_path / "webui" / "models" / "Lora" / "anna.json").is_file()


def test_inspect_is_read_by_people(tmp_path, capsys):
    """A line each for what is nested, and no brace of Python's."""
    assert main(["inspect", str(save(make_artifact(), tmp_path)[0])]) == 0
    said = capsys.readouterr().out
    assert "\n  name subject, placeholder <subject>, initializer person, num_vectors 2\n" in said
    assert "\n  inversion: num_steps 1200, " in said
    assert "\n  tuning:\n    num_steps: 1500\n" in said
    assert "\npreview: none\n" in said
    assert not [sign for sign in "{}[]" if sign in said.replace("{subject}", "").replace("{style}", "")]


def test_train_on_collages_with_controlnets(photos, tmp_path, capsys, detector):
    """Of both kinds, one from a diffusers folder; one that nothing would use, and a folder that holds none."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    net = ControlNetModel.from_unet(tiny().unet, conditioning_embedding_out_channels=(16, 32, 96))
    net.save_pretrained(tmp_path / "skeletons")
    save_file(net.state_dict(), tmp_path / "faces.safetensors")
    arguments = train_arguments(photos, tmp_path, *STEPS, "--landmark-control", str(tmp_path / "faces.safetensors"))
    assert main([*arguments, "--clone-steps", "3", "--skeleton-control", str(tmp_path / "skeletons")]) == 0
    said = capsys.readouterr().err
    for mode in ("skeleton", "landmark", "zoom"):
        assert f"clone phase, {mode}: 1 steps" in said
    assert main(arguments) == 2
    assert "--landmark-control: for collages of people; set --clone-steps" in capsys.readouterr().err
    assert main([*arguments, "--clone-steps", "2", "--skeleton-control", str(photos)]) == 2
    assert f"magicapture train: {photos}: no ControlNet is there" in capsys.readouterr().err
