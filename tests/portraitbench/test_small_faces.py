"""The fourth bench: faces of a given height, three ways to redraw them, figures by hand, and a report of the lines."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan
from typing import Any

import pytest
import torch

from magicapture_core.diir.restorer import Walk
from magicapture_core.images import load_photo
from portraitbench import group, lines, report, runs, small_faces, small_faces_report
from portraitbench.group import PEOPLE
from portraitbench.small_faces import HEIGHTS, METHODS, OURS, Run
from tests.portraitbench.test_one_photo import reached
from tests.small import random_artifact

SHORT = Walk(num_steps=4, guidance=2.5)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Results and pictures of this test alone."""
    for module in (small_faces, small_faces_report, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(small_faces, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def backbone():
    return runs.the_bench().backbone


@pytest.fixture(scope="module")
def artifact(backbone):
    return random_artifact(backbone)


def line(run: Run, **figures: float | None) -> dict[str, Any]:
    return {**vars(run), "figures": dict.fromkeys(small_faces_report.METRICS, 0.5) | figures}


# -- pictures and methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", HEIGHTS[:3:2])
def test_the_faces_have_their_height_and_are_the_models(height):
    small = small_faces.small_pictures("tuning", 0, height)
    assert len(small) == small_faces.PHOTOS
    for image, face in small:
        assert float(face.box[3] - face.box[1]) == pytest.approx(height, rel=0.3)
        assert face.landmarks is not None
        assert image.shape[1] == image.shape[2]
        assert (face.landmarks >= 0).all()
        assert (face.landmarks <= image.shape[1]).all()


def test_what_is_drawn_anew_keeps_its_colours_and_is_another_face(backbone):
    photo = small_faces.to_tensor(group.photos("tuning", 0).unseen[0].image[None])
    drawn = small_faces.drawn_anew(backbone, photo)
    assert drawn.shape == photo.shape
    assert float((drawn.mean((2, 3)) - photo.mean((2, 3))).abs().max()) < 0.1
    assert float((drawn - photo).abs().max()) > 0.2


def test_every_method_redraws_the_face_and_only_those_with_the_person_depend_on_who_it_is(backbone, artifact):
    [small, *_] = small_faces.small_pictures("tuning", 0, 32)
    other = replace(artifact, lora={key: value * 0 for key, value in artifact.lora.items()})
    for name, method in METHODS.items():
        made = []
        for who in (artifact, other):
            with method.draw(backbone, who, SHORT) as restorer:
                made.append(small_faces.redraw_faces(small.image, [small.face], restorer).image)
        assert torch.equal(*made) == (name == "nobody")
        assert torch.equal(made[0][:, 0], small.image[:, 0])
        assert not torch.equal(made[0], small.image)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_by_hand():
    """The second face is put back, the third accepted although the judge finds it less alike."""
    figures = small_faces.assess([0.1, 0.2, 0.3], [0.4, 0.9, 0.2], [True, False, True])
    assert figures == pytest.approx(
        {"csim_before": 0.2, "csim": 0.5, "csim_kept": (0.4 + 0.2 + 0.2) / 3, "accepted": 2 / 3, "lowered": 0.5}
    )
    assert isnan(small_faces.assess([0.1], [0.2], [False])["lowered"])


def test_a_run_learns_the_person_once_and_every_figure_is_there(artifact, monkeypatch):
    learned = []
    monkeypatch.setattr(group, "CACHE", small_faces.CACHE)
    monkeypatch.setattr(group, "train_person", lambda split, person: learned.append((split, person)) or artifact)
    monkeypatch.setattr(small_faces, "PHOTOS", 1)
    asked = [Run(method=method, height=24, person=1, split="tuning", strength=0.05) for method in METHODS]
    measured = list(small_faces.run_all(asked))
    assert learned == [("tuning", 1)]
    assert all(set(one["figures"]) == set(small_faces_report.METRICS) for one in measured)
    assert lines.read_lines(small_faces.lines_file()) == measured
    assert load_photo(asked[0].file(small_faces.PICTURES)).shape[1] == small_faces.LARGE


def test_every_source_that_decides_a_figure_is_in_the_key():
    assert reached(group.TINY_FOLDER.parent, ["diir/restorer", "diir/pictures"]) - set(small_faces.CORE_STAGES) <= {
        "files", "halves", "kohya", "metadata", "types", "marks", "models", "sefi/config", "sefi/identity", "ldm",
        "sharing", "small_recognisers", "upscale", "pretrained", "memory", "diir/control", "diir/landmarks",
        "landmark_maps", "pickles", "sheets",
    }  # fmt: skip
    assert {path.name for path in small_faces.sources()} >= {"small_faces.py", "group.py", "inversion.py"}


def test_the_first_bench_does_not_depend_on_this_one():
    assert not [path for path in runs.sources() if path.stem.startswith("small_faces")]


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_and_the_bars_tell_what_the_lines_hold(tmp_path):
    done = small_faces_report.table_runs()
    assert len(done) == len(set(done)) == PEOPLE * len(HEIGHTS) * len(METHODS)
    for run in done:
        rise = 0.2 if run.method == OURS else 0.0
        figures = {"csim_before": 0.1, "csim_kept": 0.1 + rise, "lowered": 0.0 if run.height < 64 else None}
        lines.add_line(small_faces.lines_file(), line(run, **figures))
    lines.add_line(small_faces.lines_file(), line(replace(done[0], strength=0.9), csim_kept=9.0))
    assert [path.name for path in small_faces_report.write_report()] == ["small-faces.md", "small-faces.json"]
    data = json.loads((tmp_path / "small-faces.json").read_text())
    for height in HEIGHTS:
        rows = {(row["method"], row["metric"]): row["mean"] for row in data[str(height)]["ahead"]}
        assert rows["nobody", "csim_kept"] == pytest.approx(0.2)
    kept = small_faces_report.table_lines(lines.read_lines(small_faces.lines_file()))
    found = list(small_faces_report.bars(kept))
    assert len(found) == len(small_faces_report.RAISED) + 1
    assert all(bar.holds for bar in found)
    low = [line(Run.of(one), csim_before=0.4, csim_kept=0.3, lowered=1.0) for one in kept]
    assert not any(bar.holds for bar in small_faces_report.bars([{**one, "pair": one["person"]} for one in low]))
    assert not any(bar.holds for bar in small_faces_report.bars(kept[:3]))
