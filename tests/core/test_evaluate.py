"""`evaluate`: every metric against what its parts say by themselves, what is left out and why, and bad input."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicapture_core.__main__ import main
from magicapture_core.backbone import TINY_FOLDER
from magicapture_core.evaluate.aesthetic import AestheticPredictor, load_aesthetic
from magicapture_core.evaluate.clip import load_clip
from magicapture_core.evaluate.judges import embed_style
from magicapture_core.evaluate.metrics import METRICS, summarise
from magicapture_core.images import load_photo, save_image, shrink
from magicapture_core.likeness import similarity
from magicapture_core.marks import read_mark
from magicapture_core.recognisers import load_recogniser
from portraitbench.nets import WEIGHTS
from tests.core.test_evaluate_clip import TOKENIZER, WIDTH, make_clip

SAMPLES = TINY_FOLDER / "samples"
RECOGNISER = WEIGHTS / "judging_recogniser.safetensors"
MADE = ("object_1.jpg", "person_3.jpg", "style_1.jpg")  # no face; the person; another one


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*address: Any) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pictures, of the person and of the style; CLIP, small and random; an aesthetic predictor for it."""
    folder = tmp_path_factory.mktemp("evaluate")
    names = {"made": MADE, "subject": ("person_1.jpg", "person_2.jpg"), "style": ("style_2.jpg", "object_2.jpg")}
    for place, files in names.items():
        (folder / place).mkdir()
        for name in files:
            shutil.copy(SAMPLES / name, folder / place)
    make_clip({"hidden_size": 40}).save_pretrained(folder / "clip")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder / "clip")
    torch.manual_seed(0)
    save_file(AestheticPredictor(WIDTH).state_dict(), folder / "aesthetic.safetensors")
    return folder


@pytest.fixture
def evaluate(detector: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """-> the exit code; what its --json says, or its errors."""

    def command(pictures: Path, *more: object) -> tuple[int, Any]:
        output = [] if "--output" in more else ["--output", tmp_path / "out"]
        arguments = ["evaluate", pictures, *more, *output, "--device", "cpu", "--json"]
        code = main([str(part) for part in arguments])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else said.err.splitlines()[-1]

    return command


def everything(given: Path) -> list[object]:
    options = {"--subject": "subject", "--style": "style", "--clip": "clip", "--aesthetic": "aesthetic.safetensors"}
    return ["--recogniser", RECOGNISER, *(part for key, name in options.items() for part in (key, given / name))]


def photos(folder: Path) -> list[Tensor]:
    return [load_photo(path) for path in sorted(folder.iterdir())]


# -- the command -------------------------------------------------------------------------------------------------------


def test_every_metric_is_what_its_parts_say(given, detector, evaluate, tmp_path):
    code, said = evaluate(given / "made", *everything(given), "--prompt", "a photo of a person")
    assert code == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows, made = report["pictures"], photos(given / "made")
    assert [row["file"] for row in rows] == list(MADE)
    assert [row["faces"] for row in rows] == [0, 1, 1]
    expected = similarity(load_recogniser(RECOGNISER), detector, made, photos(given / "subject"))
    assert [row["csim"] for row in rows] == [None, *(pytest.approx(score, abs=6e-5) for score in expected[1:])]
    assert [row["csim_strict"] for row in rows] == [0.0, *(row["csim"] for row in rows[1:])]
    assert [row["detection"] for row in rows] == [0.0, 1.0, 1.0]
    clip = load_clip(given / "clip")
    plain = torch.stack([clip.embed_image(image) for image in made])
    styles = [
        torch.stack([embed_style(clip, detector, image, detector.detect(image)) for image in images])
        for images in (made, photos(given / "style"))
    ]
    aesthetic = load_aesthetic(given / "aesthetic.safetensors", WIDTH)
    tables = {
        "style": (styles[0] @ styles[1].T).mean(1),
        "clip_t": plain @ clip.embed_text("a photo of a person"),
        "aesthetic": aesthetic(plain),
    }
    for metric, scores in tables.items():
        assert [row[metric] for row in rows] == pytest.approx(scores.tolist(), abs=6e-5), metric
    assert report["metrics"] == said["metrics"] == summarise(rows, {})
    assert said["metrics"]["csim"]["mean"] == pytest.approx(sum(score for score in expected if score) / 2, abs=6e-5)


def test_the_files_tell_the_figures_the_worst_pictures_and_no_embedding(given, evaluate, tmp_path):
    code, said = evaluate(given / "made", *everything(given), "--prompt", "a photo of a person")
    assert code == 0
    table, figures, sheet = (Path(name) for name in said["files"])
    found = said["metrics"]["csim"]
    lines = table.read_text().splitlines()
    assert lines[0] == "| metric | mean | 95 % interval | pictures |"
    assert lines[2] == f"| CSIM | {found['mean']:.3f} | {found['low']:.3f} to {found['high']:.3f} | 2 |"
    assert "| face found | 0.667 | 0.000 to 1.000 | 3 |" in lines
    assert "- style: no face is found in object_2.jpg; it is compared as it is" in lines
    assert "- 1 of 3 show no face: CSIM leaves them out, style sees them as they are" in lines
    report = json.loads(figures.read_text())
    assert report["models"] == {"recogniser": RECOGNISER.name, "clip": "clip", "aesthetic": "aesthetic.safetensors"}
    assert {key for row in report["pictures"] for key in row} == {"file", "faces", *METRICS}
    assert load_photo(sheet).shape[2] > 4 * 256  # four pictures in a row
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (table, figures, sheet)}


def test_the_sheet_shows_the_worst_picture_first_and_is_marked_as_they_are(given, evaluate, tmp_path):
    """By CSIM, that of the style's person."""
    for name in ("person_3.jpg", "style_1.jpg"):
        (tmp_path / "made").mkdir(exist_ok=True)
        shutil.copy(SAMPLES / name, tmp_path / "made")
    save_image(load_photo(SAMPLES / "person_3.jpg"), tmp_path / "made" / "marked.png", "generated")
    code, said = evaluate(tmp_path / "made", "--subject", given / "subject", "--recogniser", RECOGNISER)
    assert code == 0
    sheet = load_photo(Path(said["files"][-1]))
    first, second = (sheet[:, 4 + 128, left + 128] for left in (4, 264))
    style, person = (load_photo(SAMPLES / name) for name in ("style_1.jpg", "person_3.jpg"))
    middles = [picture[:, picture.shape[1] // 2, picture.shape[2] // 2] for picture in (style, person)]
    torch.testing.assert_close(torch.stack([first, second]), torch.stack(middles), atol=0.1, rtol=0)
    assert read_mark(Path(said["files"][-1])) == "generated"


def test_what_is_not_given_is_left_out_and_said(given, evaluate, tmp_path):
    code, said = evaluate(
        given / "made", "--subject", given / "subject", "--aesthetic", given / "aesthetic.safetensors"
    )
    assert code == 0
    assert said["metrics"].pop("detection")["mean"] == pytest.approx(2 / 3, abs=1e-4)
    reasons = {"csim": "no --recogniser", "csim_strict": "no --recogniser"}
    reasons |= dict.fromkeys(("style", "clip_t", "aesthetic"), "no --clip")
    assert said["metrics"] == {metric: {"left_out": why} for metric, why in reasons.items()}
    assert "| style | no --clip |  | 0 |" in (tmp_path / "out" / "evaluation.md").read_text().splitlines()


def test_a_vision_half_does_all_but_the_prompt(given, evaluate, tmp_path):
    weights = load_file(given / "clip" / "model.safetensors")
    half = {name: value for name, value in weights.items() if not name.startswith(("text", "logit"))}
    shutil.copytree(given / "clip", tmp_path / "half")
    save_file(half, tmp_path / "half" / "model.safetensors")
    code, said = evaluate(given / "made", "--clip", tmp_path / "half", "--style", given / "style", "--prompt", "a cat")
    assert code == 0
    assert said["metrics"]["clip_t"] == {"left_out": "no text half"}
    assert said["metrics"]["style"]["pictures"] == 3


def test_prompts_beside_the_pictures_each_count_for_their_own(given, evaluate, tmp_path):
    made = shutil.copytree(given / "made", tmp_path / "made")
    texts = {"object_1.jpg": "a drawing of a cat", "style_1.jpg": "a photo of a man", "gone.png": "nothing"}
    (made / "prompts.json").write_text(json.dumps(texts))
    code, said = evaluate(made, "--clip", given / "clip")
    assert code == 0
    clip, report = load_clip(given / "clip"), json.loads((tmp_path / "out" / "evaluation.json").read_text())
    expected = [
        float(clip.embed_image(load_photo(made / name)) @ clip.embed_text(texts[name])) if name in texts else None
        for name in MADE
    ]
    assert [row["clip_t"] for row in report["pictures"]] == pytest.approx(expected, abs=6e-5)
    assert said["metrics"]["clip_t"]["pictures"] == 2


def test_of_several_faces_the_most_prominent_is_compared(given, detector, evaluate, tmp_path):
    """A small one of the style's person on the left, a large one of the person: only hers is near the photos'."""
    small, large = load_photo(SAMPLES / "style_1.jpg"), load_photo(SAMPLES / "person_3.jpg")
    small = shrink(small[None], 384)[0]
    both = torch.cat([F.pad(small, (0, 0, 0, large.shape[1] - small.shape[1])), large], 2)
    save_image(both, tmp_path / "made" / "both.png")
    code, said = evaluate(tmp_path / "made", "--subject", given / "subject", "--recogniser", RECOGNISER)
    assert code == 0
    assert said["notes"] == ["1 of 1 show several faces: CSIM takes the largest and most central"]
    assert said["metrics"]["csim"]["mean"] > 0.8


def test_no_face_anywhere_is_a_rate_of_nothing(given, evaluate, tmp_path):
    (tmp_path / "cats").mkdir()
    shutil.copy(SAMPLES / "object_1.jpg", tmp_path / "cats")
    code, said = evaluate(tmp_path / "cats", "--subject", given / "subject", "--recogniser", RECOGNISER)
    assert code == 0
    assert said["metrics"]["csim"] == {"left_out": "no face"}
    assert said["metrics"]["detection"] == {"mean": 0.0, "low": None, "high": None, "pictures": 1}
    assert "| face found | 0.000 | one picture | 1 |" in (tmp_path / "out" / "evaluation.md").read_text()


def test_broken_pictures_and_references_without_a_face_are_named(given, evaluate, tmp_path):
    for place in ("made", "subject"):
        shutil.copytree(given / place, tmp_path / place)
        (tmp_path / place / "broken.png").write_bytes(b"no picture")
    shutil.copy(SAMPLES / "object_1.jpg", tmp_path / "subject")
    code, said = evaluate(tmp_path / "made", "--subject", tmp_path / "subject", "--recogniser", RECOGNISER)
    assert code == 0
    assert [note.split(": cannot")[0] for note in said["notes"][:3]] == [
        "subject: broken.png is left out",
        "subject: no face is found in object_1.jpg; it is left out",
        "left out: broken.png",
    ]
    assert said["metrics"]["detection"]["pictures"] == 3


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_folders_without_what_they_should_hold_are_refused(given, evaluate, tmp_path):
    (tmp_path / "made").mkdir()
    code, said = evaluate(tmp_path / "made")
    assert code == 2
    assert "made holds no photos" in said
    (tmp_path / "made" / "broken.png").write_bytes(b"no picture")
    assert "made: no picture can be read; left out: broken.png: cannot" in evaluate(tmp_path / "made")[1]
    cats = ["--subject", given / "style" / "object_2.jpg", "--recogniser", RECOGNISER]
    code, said = evaluate(given / "made", *cats)
    assert code == 2
    assert "object_2.jpg shows no face; take photos that show it from the front" in said
    code, said = evaluate(given / "made", "--style", tmp_path / "made", "--clip", given / "clip")
    assert code == 2
    assert "--style: no photo can be read; style: broken.png" in said
    assert not (tmp_path / "out").exists()


def test_the_sheet_never_lies_among_the_pictures(given, evaluate):
    code, said = evaluate(given / "made", "--output", given / "made")
    assert code == 2
    assert "holds the pictures, and the sheet would be one of them" in said


@pytest.mark.parametrize("prompt", ["a photo of a <subject> person", "{person} on a beach"])
def test_a_learned_word_is_no_prompt_for_clip(given, evaluate, prompt):
    code, said = evaluate(given / "made", "--clip", given / "clip", "--prompt", prompt)
    assert code == 2
    assert f"CLIP does not know {prompt.split()[0 if prompt[0] == '{' else 4]}; write in plain words" in said


@pytest.mark.parametrize("text", ["[]", "{", '{"other.png": "a cat"}', '{"style_1.jpg": 3}'])
def test_prompts_of_another_form_are_refused(given, evaluate, tmp_path, text):
    made = shutil.copytree(given / "made", tmp_path / "made")
    (made / "prompts.json").write_text(text)
    code, said = evaluate(made, "--clip", given / "clip")
    assert code == 2
    assert f"{made / 'prompts.json'}: " in said
    assert said.endswith('it has to be JSON such as {"file name": "prompt"}')
    assert evaluate(made)[0] == 0  # nothing asks for prompts


def test_weights_that_give_no_number_are_named(given, evaluate, tmp_path):
    broken = shutil.copytree(given / "clip", tmp_path / "clip")
    weights = load_file(broken / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors")
    code, said = evaluate(given / "made", "--style", given / "style", "--clip", broken)
    assert code == 2
    assert said == "magicapture evaluate: object_1.jpg: its style is nan; weights of --clip are damaged"


def test_a_predictor_of_another_clip_is_refused(given, evaluate, tmp_path):
    save_file(AestheticPredictor(768).state_dict(), tmp_path / "wide.safetensors")
    code, said = evaluate(given / "made", "--clip", given / "clip", "--aesthetic", tmp_path / "wide.safetensors")
    assert code == 2
    assert "wide.safetensors: judges CLIP embeddings of 768 numbers, and those of --clip have 24" in said
