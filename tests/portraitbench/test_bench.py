"""One pair end to end on the trained models, and the demo."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tqdm import tqdm

from magicapture_core.artifact import Artifact
from magicapture_core.halves import extract
from magicapture_core.sampler import generate
from magicapture_core.types import Side
from portraitbench import demo, methods, runs
from portraitbench.measure import csim, read
from portraitbench.methods import METHODS, OURS, STYLE_ONLY
from portraitbench.pictures import to_arrays
from portraitbench.table import METRICS
from tests.small import same


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """And one picture of each edit: that its figure is there is all that is asked."""
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(runs, "EDITED", 1)


def test_the_true_pictures_teach_the_style_and_every_figure_is_there(folders, monkeypatch):
    """The ceiling against the floor: if even the truth taught nothing, no method's figure would mean a thing. A tenth
    of the bench's passes is enough for that."""
    monkeypatch.setattr(methods, "PASSES", methods.PASSES // 10)
    monkeypatch.setattr(runs, "MADE", 4)
    lines = {
        name: runs.measure_run(runs.Run(method=name, pair=0, seed=0, split="tuning")) for name in ("untouched", "truth")
    }
    before, after = (lines[name]["figures"] for name in ("untouched", "truth"))
    assert set(after) == set(METRICS)
    assert after["style"] > before["style"] + 0.1
    assert after["style_words"] > before["style_words"] + 0.1


@pytest.fixture
def hasty(folders, monkeypatch):
    """Three optimizer steps, few pictures in few steps: what is drawn means nothing."""
    monkeypatch.setattr(methods, "PASSES", 64)
    monkeypatch.setattr(runs, "MADE", 2)
    monkeypatch.setattr(runs, "SAMPLING", {"num_steps": 2, "guidance": 2.5})


def test_a_mixed_run_holds_its_own_person_and_the_next_ones_style(hasty, monkeypatch):
    """Two trainings of split adapters, and of each the half that is asked of it."""
    run, trained, train_method = runs.Run(method="mixed", pair=0, seed=0, split="tuning"), {}, runs.train_method

    def keep(bench, one):
        trained[one.method, one.pair] = train_method(bench, one)
        return trained[one.method, one.pair]

    monkeypatch.setattr(runs, "train_method", keep)
    mixed = runs.make_artifact(runs.the_bench(), run)
    assert [*trained] == [("split", 0), ("split", 1)]
    first, second = trained.values()
    origins: list[tuple[Side, Artifact, Artifact]] = [("subject", first, second), ("style", second, first)]
    for side, origin, other in origins:
        half, whole, wrong = (extract(artifact, side, "half") for artifact in (mixed, origin, other))
        assert same(half.lora, whole.lora)
        assert torch.equal(half.tokens[0].vectors, whole.tokens[0].vectors)
        assert not same(half.lora, wrong.lora)
        assert not torch.equal(half.tokens[0].vectors, wrong.tokens[0].vectors)
    monkeypatch.setattr(runs, "make_artifact", lambda bench, run: mixed)
    assert set(runs.measure_run(run)["figures"]) == set(METRICS)


def test_style_only_pictures_are_made_by_the_styles_half_alone(hasty):
    run, bench = runs.Run(method="split", pair=0, seed=0, split="tuning"), runs.the_bench()
    whole = runs.make_artifact(bench, run)
    person = read(bench.judges, to_arrays(runs.photos(run, "subject").unseen).tensor())
    of_half, of_whole = (
        csim(read(bench.judges, generate(bench.backbone, artifact, STYLE_ONLY, **runs.SAMPLING, num_images=2)), person)
        for artifact in (extract(whole, "style", "half"), whole)
    )
    assert runs.measure_run(run)["figures"]["style_only_csim"] == pytest.approx(of_half, abs=1e-5)
    assert of_half != pytest.approx(of_whole, abs=1e-4)
    joint = runs.make_artifact(bench, replace(run, method=OURS))
    assert runs.style_alone(joint) is joint


def test_a_rival_is_trained_by_its_own_loss(hasty, monkeypatch):
    """At the same weight as the whole method's, by nothing else."""
    monkeypatch.setitem(METHODS, "break_a_scene", replace(METHODS["break_a_scene"], changes={}))
    ours, rival = (
        runs.make_artifact(runs.the_bench(), runs.Run(method=method, pair=0, seed=0, split="tuning"))
        for method in (OURS, "break_a_scene")
    )
    assert rival.config == ours.config
    assert not same(rival.lora, ours.lora)


def test_the_demo_shows_the_truth_beside_what_was_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "PASSES", 64)
    monkeypatch.setitem(demo.SAMPLING, "num_steps", 2)

    made = demo.run(tmp_path, lambda total, text: tqdm(total=total, desc=text, disable=True))
    page = (tmp_path / "report.html").read_text()
    for name in ("photos", "losses", "composed", "attention", "restored"):
        assert f'alt="{name}"' in page
    for words in ("before: CSIM", "after: CSIM", "truth: CSIM", "falls outside the face"):
        assert words in page
    assert (tmp_path / "magicapture.safetensors").samefile(made["lora"])
