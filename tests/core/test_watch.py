"""Looking at a run: the same pictures every time, nothing disturbed, the most alike step kept, an end to patience."""

from contextlib import closing

import pytest
import torch

from magicapture_core import artifact, recipe
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode
from magicapture_core.faces import FaceDetector
from magicapture_core.kept import Kept
from magicapture_core.likeness import embed_face
from magicapture_core.trainer import train
from magicapture_core.types import Face
from magicapture_core.watch import Watch, best_look, describe
from tests.small import LANDMARKS, SmallRecogniser, portraits, same, small_config

SUBJECT, STYLE = portraits(2), portraits(3, seed=1)
CONFIG = small_config(tuning={"num_steps": 4, "lora_learning_rate": 0.02}, loss={"attention_downscale": 2})


class OneFace(FaceDetector):
    """Sees a face in the same place of every picture, and after `until` pictures none."""

    def __init__(self, until: int = 1000) -> None:
        self.left = until

    def detect(self, image):
        self.left -= 1
        return [Face(box=torch.tensor([8.0, 16.0, 40.0, 48.0]), landmarks=LANDMARKS)] if self.left >= 0 else []


class Stop(BaseException):
    """As a host's own way to say stop."""


@pytest.fixture(autouse=True)
def short_sampling(monkeypatch):
    monkeypatch.setattr("magicapture_core.watch.NUM_STEPS", 2)


def run(folder, **options):
    """The finished result, and what was seen."""
    looks = []
    watch = Watch(every=1, detector=OneFace(), on_look=looks.append, **options.pop("watch", {}))
    options.setdefault("recogniser", SmallRecogniser())
    result = recipe.personalize(
        tiny(),
        SUBJECT,
        STYLE,
        CONFIG,
        name="someone",
        folder=folder / "work",
        save=lambda made: list(artifact.save(made, folder)),
        watch=watch,
        **options,
    )
    return result, looks


def lora_of(files):
    return artifact.load(files[0]).lora


def test_a_look_is_the_same_again_and_leaves_the_run_as_it_is():
    backbone = tiny()
    dataset = encode(backbone, SUBJECT, STYLE, CONFIG, SmallRecogniser())
    *_, undisturbed = (step.state() for step in train(backbone, dataset, CONFIG))
    for step in train(backbone, dataset, CONFIG):
        first, again = (Watch(detector=OneFace()).look(step.run, step.step, dataset.likeness) for _ in range(2))
        assert torch.equal(first.sheet, again.sheet)
        assert first.likeness == again.likeness
        last = step.state()
    assert same(last, undisturbed)
    assert first.composed.shape == (3, 64, 64)
    assert first.sheet.shape[2] > 7 * 64  # three pictures, and four maps: one, one and two words


def test_the_likeness_is_the_mean_cosine_to_the_photos():
    backbone, recogniser = tiny(), SmallRecogniser()
    dataset = encode(backbone, SUBJECT, STYLE, CONFIG, recogniser)
    with closing(train(backbone, dataset, CONFIG)) as steps:
        run = next(steps).run
        look = Watch(detector=OneFace()).look(run, 1, dataset.likeness)
        assert Watch(detector=OneFace(until=0)).look(run, 1, dataset.likeness).likeness == 0
        assert Watch().look(run, 1, dataset.likeness).likeness is None
        assert Watch(detector=OneFace()).look(run, 1, None).likeness is None
    embeds = embed_face(recogniser, OneFace(), look.composed)
    assert embeds is not None
    assert dataset.likeness is not None
    assert look.likeness == pytest.approx(float((dataset.likeness.embeddings @ embeds[0]).mean()))


def test_the_most_alike_step_is_saved_beside_the_last(tmp_path):
    made = {}
    result, looks = run(tmp_path, on_step=lambda step: made.update({step.step: recipe.to_artifact(step.run, "x").lora}))
    assert [step for step, _ in result.told.looks] == [1, 2, 3, 4, 5, 6, 7]
    assert result.told.likenesses == [look.likeness for look in looks]
    best = best_look(result.told.likenesses) + 1
    assert 1 <= best < 7
    assert same(lora_of(result.files), made[7])
    assert result.best_files[0].name == "someone_best.safetensors"
    assert same(lora_of(result.best_files), made[best])
    kept = Kept(tmp_path / "work", result.key)
    assert kept.find_result() == result
    assert len(list(kept.samples.iterdir())) == len(list(kept.looks.iterdir())) == 7
    assert {path.name.split("-")[0] for path in kept.folder.iterdir()} == {"result", "samples", "looks"}
    assert f"the best is step {best}" in describe(result.told.looks)


def test_when_patience_runs_out_the_training_ends(tmp_path):
    whole, _ = run(tmp_path / "whole")
    likenesses = whole.told.likenesses
    end = next(n for n in range(2, 8) if n - 1 - best_look(likenesses[:n]) == 2)
    assert end < 7
    result, looks = run(tmp_path / "short", watch={"patience": 2})
    assert len(looks) == len(result.told.history) == end
    assert result.told.likenesses == likenesses[:end]
    assert Kept(tmp_path / "short" / "work", result.key).find_result() == result
    assert result.key != whole.key


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_stop_forgets_no_look(tmp_path, stop_after):
    """Resumed, the likenesses, the best and the files are those of the run that was never stopped."""

    def stop(step):
        if step.step == stop_after:
            raise Stop

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "stopped", on_step=stop)
    resumed, looks = run(tmp_path / "stopped")
    assert [look.step for look in looks] == list(range(stop_after + 1, 8))
    assert resumed.told == whole.told
    for left, right in ((whole.files, resumed.files), (whole.best_files, resumed.best_files)):
        assert same(lora_of(left), lora_of(right))


def test_without_a_recogniser_there_is_no_best(tmp_path):
    result, looks = run(tmp_path, recogniser=None, watch={"patience": 1})
    assert len(looks) == 7
    assert result.told.looks == result.best_files == []
    assert describe(result.told.looks) == ""


@pytest.mark.parametrize(
    ("likenesses", "patience", "ends"),
    [([], 1, False), ([0.5], 1, False), ([0.5, 0.5], 1, True), ([0.5, 0.6], 1, False), ([0.5, 0.4, 0.4], 3, False),
     ([0.5, 0.4, 0.4, 0.5], 3, True), ([0.5, 0.4, 0.3], 0, False)],
)  # fmt: skip
def test_patience_by_hand(likenesses, patience, ends):
    assert Watch(patience=patience).is_out_of_patience(likenesses) is ends
