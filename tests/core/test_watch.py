"""Looking at a run: the same pictures every time, nothing disturbed, the most alike step kept, an end to patience."""

import shutil
from contextlib import closing
from functools import cache
from typing import Any

import pytest
import torch

from magicapture_core import artifact, fitting, recipe
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode
from magicapture_core.faces import FaceDetector
from magicapture_core.kept import Kept, missing_files
from magicapture_core.likeness import embed_face
from magicapture_core.trainer import train
from magicapture_core.types import Face, MagiCaptureError
from magicapture_core.watch import Watch, describe
from tests.small import LANDMARKS, SmallRecogniser, portraits, same, small_config

SUBJECT, STYLE = portraits(2), portraits(3, seed=1)
CONFIG = small_config(tuning={"num_steps": 6, "lora_learning_rate": 0.02}, loss={"attention_downscale": 2})


class OneFace(FaceDetector):
    """Sees a face in the same place of every picture, and after `until` pictures none."""

    def __init__(self, until: int = 1000) -> None:
        self.left = until

    def detect(self, image):
        self.left -= 1
        return [Face(box=torch.tensor([8.0, 16.0, 40.0, 48.0]), landmarks=LANDMARKS)] if self.left >= 0 else []


class Stop(BaseException):
    """As a host's own way to say stop."""


def run(folder, **options: Any):
    """The finished result, and what was seen."""
    looks = []
    watch = Watch(**{"every": 1, "detector": OneFace(), "on_look": looks.append, **options.pop("watch", {})})
    options.setdefault("recogniser", SmallRecogniser())
    result = recipe.personalize(
        tiny(),
        {"subject": SUBJECT, "style": STYLE},
        CONFIG,
        name="someone",
        folder=folder / "work",
        save=lambda made: list(artifact.save(made, folder)),
        watch=watch,
        **options,
    )
    return result, looks


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By patience: the run that nothing stops, made once."""
    return cache(lambda patience: run(tmp_path_factory.mktemp("whole"), watch={"patience": patience}))


def lora_of(files):
    return artifact.load(files[0]).lora


def test_a_look_is_the_same_again_and_leaves_the_run_as_it_is():
    backbone = tiny()
    dataset = encode(backbone, {"subject": SUBJECT, "style": STYLE}, CONFIG, SmallRecogniser())
    seen = recipe.views(dataset, CONFIG)
    *_, undisturbed = (step.state() for step in train(backbone, dataset, CONFIG))
    for step in train(backbone, dataset, CONFIG):
        first, again = (Watch(detector=OneFace()).look(step.run, seen, step.step, dataset.likeness) for _ in range(2))
        assert torch.equal(first.sheet, again.sheet)
        assert first.likeness == again.likeness
        last = step.state()
    assert same(last, undisturbed)
    assert first.sample.shape == (3, 64, 64)
    assert first.sheet.shape[2] > 7 * 64  # three pictures, and four maps: one, one and two words


def test_the_likeness_is_the_mean_cosine_to_the_photos():
    backbone, recogniser = tiny(), SmallRecogniser()
    dataset = encode(backbone, {"subject": SUBJECT, "style": STYLE}, CONFIG, recogniser)
    seen = recipe.views(dataset, CONFIG)
    with closing(train(backbone, dataset, CONFIG)) as steps:
        run = next(steps).run
        look = Watch(detector=OneFace()).look(run, seen, 1, dataset.likeness)
        assert Watch(detector=OneFace(until=0)).look(run, seen, 1, dataset.likeness).likeness == 0
        assert Watch().look(run, seen, 1, dataset.likeness).likeness is None
        assert Watch(detector=OneFace()).look(run, seen, 1, None).likeness is None
    embeds = embed_face(recogniser, OneFace(), look.sample)
    assert embeds is not None
    assert dataset.likeness is not None
    assert look.likeness == pytest.approx(float((dataset.likeness.embeddings["subject"] @ embeds[0]).mean()))


def test_the_most_alike_step_of_phase_2_is_saved_beside_the_last(tmp_path):
    made = {}
    result, looks = run(tmp_path, on_step=lambda step: made.update({step.step: recipe.to_artifact(step.run, "x").lora}))
    assert [step for step, _ in result.told.looks] == [4, 5, 6, 7, 8, 9]
    assert result.told.likenesses == [look.likeness for look in looks[3:]]
    best = result.told.best
    assert best is not None
    assert max(result.told.likenesses) == result.told.likenesses[best - 4] > result.told.likenesses[-1]
    assert same(lora_of(result.files), made[9])
    assert result.best_files[0].name == "someone_best.safetensors"
    assert same(lora_of(result.best_files), made[best])
    kept = Kept(tmp_path / "work", result.key)
    assert kept.find_result() == result
    assert len(list(kept.samples.iterdir())) == len(list(kept.looks.iterdir())) == 9
    assert {path.name.split("-")[0] for path in kept.folder.iterdir()} == {"result", "samples", "looks"}
    assert f"{best}: {max(result.told.likenesses):.3f}" in describe(result.told.looks)
    result.best_files[0].unlink()
    assert kept.find_result() is None
    assert missing_files(kept.folder) == [str(result.best_files[0])]


def test_when_patience_runs_out_the_training_ends(tmp_path, undisturbed):
    whole, _ = undisturbed(0)
    likenesses = whole.told.likenesses
    end = next(n for n in range(1, 7) if n - 1 - likenesses.index(max(likenesses[:n])) == 1)
    assert end < 6
    result, looks = run(tmp_path / "short", watch={"patience": 1})
    assert len(looks) == len(result.told.history) == 3 + end
    assert result.told.likenesses == likenesses[:end]
    assert Kept(tmp_path / "short" / "work", result.key).find_result() == result
    assert result.key != whole.key


class Stopper:
    """Raises Stop at a step, or at a step of the sampling."""

    def __init__(self, step=0, sampling=0):
        self.step, self.sampling, self.sampled = step, sampling, 0

    def on_step(self, step):
        if step.step == self.step:
            raise Stop

    def on_sampling(self, step, num_steps):
        self.sampled += 1
        if self.sampled == self.sampling:
            raise Stop


@pytest.mark.parametrize("patience", [0, 1])
@pytest.mark.parametrize("stop", [{"step": 2}, {"step": 5}, {"sampling": 2 * 3 * 4 + 3}, {"sampling": 2 * 3 * 3 + 1}])
def test_a_stop_forgets_no_look(tmp_path, undisturbed, stop, patience):
    """After a step, or within the 2 x 3 samplings of a look: resumed, all is as if the run had never been stopped."""
    stopper, watch = Stopper(**stop), {"patience": patience}
    whole, seen = undisturbed(patience)
    with pytest.raises(Stop):
        run(tmp_path / "stopped", on_step=stopper.on_step, watch={**watch, "on_sampling": stopper.on_sampling})
    resumed, looks = run(tmp_path / "stopped", watch=watch)
    assert resumed.told == whole.told
    assert looks[-1].step == seen[-1].step
    assert [file.name for file in resumed.best_files] == [file.name for file in whole.best_files]
    for left, right in ((whole.files, resumed.files), (whole.best_files, resumed.best_files)):
        assert not left or same(lora_of(left), lora_of(right))


def test_a_kill_after_any_look_loses_no_candidate(tmp_path, undisturbed, monkeypatch):
    """The state of step 5 and all that lies beside it after step 6's look: the best of the resumed run is found."""
    whole, _ = undisturbed(0)
    monkeypatch.setattr(fitting, "STATE_EVERY", 5)

    def copy(step):
        if step.step == 7:
            shutil.copytree(tmp_path / "killed" / "work", tmp_path / "left" / "work")

    run(tmp_path / "killed", on_step=copy)
    resumed, _ = run(tmp_path / "left")
    assert resumed.resumed_from == 5
    assert resumed.told == whole.told
    assert same(lora_of(whole.best_files), lora_of(resumed.best_files))


def test_looks_that_fail_after_the_best_cost_no_best(tmp_path, undisturbed):
    """The last that could tell is then the most alike one, and not the last step."""
    whole, _ = undisturbed(0)
    best, sampled = whole.told.best, []

    def fail(step, num_steps):
        sampled.append(step)
        if len(sampled) > best * 3 * 2:
            raise MagiCaptureError("no more pictures")

    result, _ = run(tmp_path, watch={"on_sampling": fail})
    assert result.told.looks[-1][0] == result.told.best == best < len(result.told.history)
    assert same(lora_of(result.best_files), lora_of(whole.best_files))


def test_a_kill_within_the_last_look_repeats_it_and_no_step(tmp_path, undisturbed):
    """All that lies on the disk while the last step is looked at: nothing says yet that the training is finished."""
    whole, seen = undisturbed(0)
    sampled = []

    def copy(step, num_steps):
        sampled.append(step)
        if len(sampled) == 8 * 3 * 2 + 3:
            shutil.copytree(tmp_path / "killed" / "work", tmp_path / "left" / "work")

    run(tmp_path / "killed", watch={"on_sampling": copy})
    assert Kept(tmp_path / "left" / "work", whole.key).find_result() is None
    resumed, looks = run(tmp_path / "left")
    assert resumed.resumed_from == len(whole.told.history)
    assert resumed.told == whole.told
    assert [look.step for look in looks] == [9]
    assert torch.equal(looks[0].sheet, seen[-1].sheet)
    assert same(lora_of(whole.files), lora_of(resumed.files))


def test_a_look_that_fails_is_told_and_the_training_goes_on(tmp_path):
    """For want of memory, at the fifth step and at the last."""

    def run_out(step, num_steps):
        if len(calls) in (4, 8):
            raise torch.OutOfMemoryError("no GPU has this much")

    calls: list[int] = []
    said: list[str] = []
    result, looks = run(
        tmp_path, watch={"on_sampling": run_out}, on_step=lambda step: calls.append(step.step), say=said.append
    )
    assert [look.step for look in looks] == [1, 2, 3, 4, 6, 7, 8]
    assert [line.split(":")[0] for line in said] == [f"no sample pictures after step {n}" for n in (5, 9)]
    assert result.files[0].name == "someone.safetensors"
    assert calls == list(range(1, 10))


def test_likeness_is_told_to_three_digits():
    """Looks of one run differ in the third: 0.431 and 0.427 would both be 0.43."""
    assert describe([[20, 0.4312], [30, 0.4268], [40, -0.0996]]) == "likeness by step 20: 0.431, 30: 0.427, 40: -0.100"


def test_without_a_face_there_is_no_best(tmp_path):
    result, _ = run(tmp_path, watch={"detector": OneFace(until=0)})
    assert result.told.likenesses == [0.0] * 6
    assert result.best_files == []


def test_without_a_recogniser_there_is_no_likeness(tmp_path):
    result, looks = run(tmp_path, recogniser=None)
    assert len(looks) == 9
    assert result.told.looks == result.best_files == []
    assert describe(result.told.looks) == ""


@pytest.mark.parametrize("lacking", [{"recogniser": None}, {"watch": {"detector": None}}, {"watch": {"every": 0}}])
def test_patience_that_nobody_can_have_is_refused(tmp_path, lacking):
    lacking = {**lacking, "watch": {"patience": 1, **lacking.get("watch", {})}}
    with pytest.raises(MagiCaptureError, match="patience: nobody could tell"):
        run(tmp_path, **lacking)


@pytest.mark.parametrize(
    ("likenesses", "patience", "ends"),
    [([], 1, False), ([0.5], 1, False), ([0.5, 0.5], 1, True), ([0.5, 0.6], 1, False), ([0.5, 0.4, 0.4], 3, False),
     ([0.5, 0.4, 0.4, 0.5], 3, True), ([0.5, 0.4, 0.3], 0, False)],
)  # fmt: skip
def test_patience_by_hand(likenesses, patience, ends):
    assert Watch(patience=patience).is_out_of_patience(likenesses) is ends
