"""One pair end to end on the trained models, and the demo."""

from __future__ import annotations

import pytest
from tqdm import tqdm

from portraitbench import demo, methods, runs
from portraitbench.table import METRICS


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")


def test_the_true_pictures_teach_the_style_and_every_figure_is_there(folders):
    """The ceiling against the floor: if even the truth taught nothing, no method's figure would mean a thing."""
    lines = {
        name: runs.measure_run(runs.Run(method=name, pair=0, seed=0, split="tuning")) for name in ("untouched", "truth")
    }
    before, after = (lines[name]["figures"] for name in ("untouched", "truth"))
    assert set(after) == set(METRICS)
    assert after["style"] > before["style"] + 0.1
    assert after["style_words"] > before["style_words"] + 0.1


def test_the_demo_shows_the_truth_beside_what_was_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "PASSES", 64)

    made = demo.run(tmp_path, lambda total, text: tqdm(total=total, desc=text, disable=True))
    page = (tmp_path / "report.html").read_text()
    for name in ("photos", "losses", "composed", "attention", "restored"):
        assert f'alt="{name}"' in page
    for words in ("before: CSIM", "after: CSIM", "truth: CSIM", "falls outside the face"):
        assert words in page
    assert (tmp_path / "magicapture.safetensors").samefile(made["lora"])
