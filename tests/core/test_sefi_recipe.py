"""One photo to an identity's files: looks, the best, a stop, a kill, too little memory."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from magicapture_core import fitting
from magicapture_core.backbone import tiny
from magicapture_core.kept import TERMS, Kept, forget
from magicapture_core.sefi import recipe
from magicapture_core.sefi.config import SefiConfig, parse_sefi_config
from magicapture_core.sefi.identity import SefiIdentity, load, save
from magicapture_core.types import MagiCaptureError, Portraits
from magicapture_core.watch import Watch
from tests.core.test_watch import OneFace
from tests.small import SmallRecogniser, portraits, same, weights

PHOTO = portraits(1)
SMALL = {"resolution": 64, "attention_downscale": 1, "num_steps": 6, "learning_rate": 0.05, "parts": "vectors"}


class Stop(BaseException):
    """As a host's own way to say stop."""


def settings(**changes) -> SefiConfig:
    return parse_sefi_config({**SMALL, **changes})


def run(folder, config=None, backbone=None, stop_after=None, watch=None, **options):
    """The finished result, what was seen, and the steps."""

    def on_step(step):
        steps.append(step.step)
        if step.step == stop_after:
            raise Stop

    looks, steps = [], []
    options.setdefault("on_step", on_step)
    options.setdefault("recogniser", SmallRecogniser())
    result = recipe.personalize(
        backbone or tiny(),
        PHOTO,
        config or settings(),
        name="someone",
        folder=folder / "work",
        save=lambda made: list(save(made, folder)),
        watch=Watch(**{"every": 1, "detector": OneFace(), "on_look": looks.append, **(watch or {})}),
        **options,
    )
    return result, looks, steps


def stages(files):
    return load(files[0]).stages


def test_one_photo_becomes_an_identity_its_plain_word_and_a_preview(tmp_path):
    backbone = tiny()
    before = weights(backbone.unet, backbone.text_encoder, backbone.vae)
    said = []
    result, looks, steps = run(tmp_path, backbone=backbone, say=said.append)
    assert same(weights(backbone.unet, backbone.text_encoder, backbone.vae), before)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [file.name for file in result.files] == ["someone.safetensors", "someone_sefi.safetensors"]
    made = load(result.files[0])
    assert (made.architecture, made.placeholder, made.initializer) == ("magicapture-tiny", "<person>", "person")
    assert made.stages.shape[:2] == (5, 2)
    assert made.config == settings().model_dump(mode="json")
    assert same(load_file(result.files[1]), {"<person>": made.plain})
    assert (tmp_path / "someone.preview.png").read_bytes() == Kept(tmp_path / "work", result.key).sample(6).read_bytes()
    attention = [row[TERMS.index("attention")] for row in result.told.history]
    assert attention[0] == 0  # it starts as the plain word itself
    assert max(attention) > 0  # not every step's: a stage that has not moved yet is still the plain word
    assert said[-1].startswith("attention loss ")
    assert said[-1].endswith("over the last 6 steps")
    assert looks[0].sample.shape == (3, 64, 64)
    assert looks[0].sheet.shape[2] > 8 * 64  # the training's sentence and three edits, each with the word's map


def test_a_look_shows_the_sentence_and_edits_of_it():
    views = recipe.views(settings(placeholder_token="<ann>"))
    assert [view.prompt for view in views] == [
        "a photo of the face of <ann>",
        "a photo of <ann> wearing glasses",
        "a photo of <ann> smiling",
        "a photo of <ann> in front of a blue background",
    ]
    assert [bool(view.person) for view in views] == [True, False, False, False]
    assert all(view.words == ["<ann>"] for view in views)


def test_the_balance_by_hand():
    """0.003 x 10 is 30 % of 0.1."""
    history = [[9.0, 9.0, 0.0, 0.0, 9.0], *[[0.1, 10.0, 0.0, 0.0, 0.13]] * 100]
    balance = "attention loss 10, weighed by 0.003, beside a reconstruction of 0.1: 30.0% of it"
    assert recipe.describe_balance(history, settings()) == f"{balance}, over the last 100 steps"


@pytest.mark.parametrize("parts", ["vectors", "block"])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_stopped_run_resumes_to_the_same_file(tmp_path, stop_after, parts):
    whole, *_ = run(tmp_path / "whole", settings(parts=parts))
    with pytest.raises(Stop):
        run(tmp_path / "stopped", settings(parts=parts), stop_after=stop_after)
    assert not list((tmp_path / "stopped").glob("*.safetensors"))
    resumed, _, steps = run(tmp_path / "stopped", settings(parts=parts))
    assert steps == list(range(stop_after + 1, 7))
    assert resumed.resumed_from == stop_after
    assert resumed.told == whole.told
    for left, right in ((whole.files, resumed.files), (whole.best_files, resumed.best_files)):
        assert [file.name for file in left] == [file.name for file in right]
        assert all(same(load_file(a), load_file(b)) for a, b in zip(left, right, strict=True))


def test_the_most_alike_step_is_saved_beside_the_last(tmp_path):
    made = {}
    result, looks, _ = run(
        tmp_path, on_step=lambda step: made.update({step.step: recipe.to_identity(step.run, "x").stages})
    )
    assert result.told.likenesses == [look.likeness for look in looks]
    best = result.told.best
    assert best is not None
    assert best < 6  # else there would be no file of its own
    assert max(result.told.likenesses) == result.told.likenesses[best - 1]
    assert [file.name for file in result.best_files] == ["someone_best.safetensors", "someone_best_sefi.safetensors"]
    assert torch.equal(stages(result.best_files), made[best])
    assert torch.equal(stages(result.files), made[6])
    kept = Kept(tmp_path / "work", result.key)
    assert kept.find_result() == result
    assert {path.name.split("-")[0] for path in kept.folder.iterdir()} == {"result", "samples", "looks"}
    forget(kept.folder)
    assert all(file.is_file() for file in (*result.files, *result.best_files))


def test_a_kill_loses_no_more_than_the_steps_since_the_last_state(tmp_path, monkeypatch):
    """What lies on the disk in the midst of step 5, after the state of step 4."""
    monkeypatch.setattr(fitting, "STATE_EVERY", 4)
    whole, *_ = run(tmp_path / "whole")

    def copy(step):
        if step.step == 5:
            shutil.copytree(tmp_path / "killed" / "work", tmp_path / "left" / "work")

    run(tmp_path / "killed", on_step=copy)
    resumed, *_ = run(tmp_path / "left")
    assert resumed.resumed_from == 4
    assert resumed.told == whole.told
    assert torch.equal(stages(whole.files), stages(resumed.files))
    assert torch.equal(stages(whole.best_files), stages(resumed.best_files))


def test_a_stop_on_the_last_step_comes_too_late_to_lose_anything(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, stop_after=6)
    found, _, steps = run(tmp_path)
    assert not steps
    assert len(found.told.history) == found.resumed_from == 6


def test_when_patience_runs_out_the_training_ends(tmp_path):
    whole, *_ = run(tmp_path / "whole")
    likenesses = whole.told.likenesses
    end = next(n for n in range(1, 7) if n - 1 - likenesses.index(max(likenesses[:n])) == 1)
    result, looks, _ = run(tmp_path / "short", watch={"patience": 1})
    assert len(looks) == len(result.told.history) == end < 6
    with pytest.raises(MagiCaptureError, match="patience: nobody could tell"):
        run(tmp_path / "none", watch={"patience": 1}, recogniser=None)


def test_out_of_memory_goes_on_with_less(tmp_path):
    """Two pictures at once are too many. Without looks, whose sampling needs as much."""
    whole, *_ = run(tmp_path / "whole", settings(accumulate=2))
    backbone, said = tiny(), []

    def run_out(module, inputs):
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("no GPU has this much")

    config = settings(accumulate=2, batch_size=2)
    backbone.unet.register_forward_pre_hook(run_out)
    result, _, steps = run(tmp_path / "short", config, backbone, watch={"every": 0, "detector": None}, say=said.append)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert "goes on with gradient_checkpointing and batch_size 1" in said[0]
    told = [row[-1] for row in result.told.history]
    assert told == pytest.approx([row[-1] for row in whole.told.history], rel=1e-3)


def test_the_key_is_of_all_that_decides():
    pixel, landmark = PHOTO.images.clone(), torch.zeros(5, 2)
    pixel[0, 0, 0, 0] += 1 / 255
    other, recogniser = tiny(), SmallRecogniser()
    with torch.no_grad():
        next(other.unet.parameters()).view(-1)[0] += 1e-3
        next(recogniser.parameters()).view(-1)[0] += 1e-3
    moved = replace(PHOTO, faces=[replace(PHOTO.faces[0], landmarks=landmark)])
    watch = Watch(detector=OneFace(), every=2, patience=3)
    seen: dict[str, Any] = {"recogniser": SmallRecogniser(), "watch": watch}

    def key(**changes: Any):
        return recipe.result_key(**{"backbone": tiny(), "portraits": PHOTO, "config": settings(), **changes})

    keys = [
        key(),
        key(portraits=replace(PHOTO, images=pixel)),
        key(backbone=other),
        key(config=settings(attention_weight=0.01)),
        key(**seen),
        key(**seen | {"recogniser": recogniser}),
        key(**seen | {"portraits": moved}),
        key(**seen | {"watch": replace(watch, every=1)}),
        key(**seen | {"watch": replace(watch, patience=2)}),
    ]
    assert len(set(keys)) == len(keys)
    cheaper = settings(batch_size=4, gradient_checkpointing=True)
    assert key(config=cheaper) == key(portraits=moved) == key(watch=Watch(every=1)) == keys[0]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"name": "../up"}, "name"),
        ({"portraits": Portraits(images=torch.empty(0, 3, 64, 64), masks=torch.empty(0, 1, 64, 64))}, "no photo"),
        ({"portraits": replace(PHOTO, faces=[replace(PHOTO.faces[0], landmarks=None)])}, "no photo shows a face"),
        ({"config": settings(initializer_token="personality")}, "initializer_token"),
    ],
)
def test_bad_input_is_one_line(tmp_path, given, named):
    defaults = {"portraits": PHOTO, "config": settings(), "name": "someone", "folder": tmp_path}
    defaults["recogniser"] = SmallRecogniser()
    with pytest.raises(MagiCaptureError, match=named):
        recipe.personalize(tiny(), save=lambda made: [], **{**defaults, **given})


def test_an_identity_of_a_run_is_one_of_the_files(tmp_path):
    """What a candidate is kept and found as."""
    kept = Kept(tmp_path, "0" * 32)
    made = SefiIdentity(
        name="candidate",
        architecture="magicapture-tiny",
        placeholder="<person>",
        initializer="person",
        stages=torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0)),
        template="a photo of {person}",
    )
    kept.keep_candidate(3, lambda folder: save(made, folder))
    found = kept.find_candidate(3, load)
    assert found is not None
    assert torch.equal(found.stages, made.stages)
    assert kept.find_candidate(4, load) is None
