"""The third bench: three ways to bring LoRAs together, faces assigned by hand, and a report of what the lines hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.group.layout import grid
from magicapture_core.group.people import Person
from magicapture_core.images import load_photo, save_image
from magicapture_core.lora import applied
from magicapture_core.sampler import PromptEmbeds, generate
from magicapture_core.types import LoraLayer
from portraitbench import group, group_report, lines, report, runs
from portraitbench.group import BACKGROUND, CANVAS, METHODS, OURS, PEOPLE, PROMPT, Run
from tests.portraitbench.test_measure import reading
from tests.portraitbench.test_one_photo import reached
from tests.small import random_artifact

OPTIONS: dict[str, Any] = {"num_steps": 2, "guidance": 2.5, "seed": 3, "num_images": 2, "size": CANVAS[2]}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Results and pictures of this test alone."""
    for module in (group, group_report, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(group, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def artifact(backbone):
    return random_artifact(backbone)


def line(run: Run, **figures: float | None) -> dict[str, Any]:
    return {**vars(run), "figures": dict.fromkeys(group_report.METRICS, 0.5) | figures}


# -- methods -----------------------------------------------------------------------------------------------------------


def test_everybody_in_a_group_is_somebody_else_and_groups_stay_what_they_are():
    for count in CANVAS:
        members = [Run(method=OURS, count=count, group=number).members for number in range(8)]
        assert all(len(set(one)) == count and set(one) <= set(range(PEOPLE)) for one in members)
        assert len(set(map(tuple, members))) > 4
        assert members[3] == Run(method=PROMPT, count=count, group=3).members


def test_where_all_are_the_same_person_passes_and_regions_are_the_plain_sampler(backbone, artifact, monkeypatch):
    monkeypatch.setattr(group, "DELAY", 0.0)
    masks = grid(1, 2, CANVAS[2])
    people = [Person(made=artifact, mask=mask, prompt="a photo of a {person}") for mask in masks]
    plain = generate(backbone, artifact, people[0].text(BACKGROUND), **OPTIONS)
    for method in ("passes", OURS):
        made = METHODS[method].draw(backbone, people, "alone", OPTIONS)
        assert made.shape == (2, 3, *CANVAS[2])
        torch.testing.assert_close(made, plain, atol=1e-3, rtol=0)


def test_the_prompt_alone_names_everybody_with_a_word_of_their_own(backbone, artifact, monkeypatch):
    asked = []

    def embedded(backbone, vocabulary, prompts):
        asked.append((vocabulary, prompts[1]))
        return PromptEmbeds(backbone, vocabulary, prompts)

    monkeypatch.setattr(group, "PromptEmbeds", embedded)
    people = [Person(made=artifact, mask=mask) for mask in grid(1, 3, CANVAS[3])]
    METHODS[PROMPT].draw(backbone, people, "alone", {**OPTIONS, "num_images": 1, "size": CANVAS[3]})
    [(vocabulary, prompt)] = asked
    assert prompt == (
        "a close-up photo of three people, on the left a <person_1> person, in the middle a <person_2> person, on the "
        "right a <person_3> person, in front of a plain blue background"
    )
    ids = [vocabulary.encode([f"<person_{number}>"])[0, 1] for number in (1, 2, 3)]
    assert len(set(map(int, ids))) == 3


def test_every_method_begins_with_nobody_known(backbone, artifact, monkeypatch):
    monkeypatch.setattr(group, "DELAY", 1.0)
    people = [Person(made=artifact, mask=mask) for mask in grid(1, 2, CANVAS[2])]
    nobody = generate(backbone, None, group.layout(2), **OPTIONS)
    for method in METHODS.values():
        torch.testing.assert_close(method.draw(backbone, people, "alone", OPTIONS), nobody, atol=1e-3, rtol=0)


def test_loras_are_added_up(backbone):
    layer, states = torch.nn.Linear(6, 5, bias=False).requires_grad_(False), torch.randn(3, 6)
    loras = [
        {"layer": LoraLayer(down=torch.randn(rank, 6), up=torch.randn(5, rank), alpha=alpha)}
        for rank, alpha in ((2, 1.0), (3, 6.0))
    ]
    model = torch.nn.ModuleDict({"layer": layer})
    expected = layer(states) + sum(states @ (own["layer"].up @ own["layer"].down).T * scale for own, scale in
                                   zip(loras, (0.5, 2.0), strict=True))  # fmt: skip
    with applied(model, group.added(loras)):
        torch.testing.assert_close(model["layer"](states), expected)


def test_what_is_said_of_one_person():
    assert group.about(1, 3, "alone") == "a photo of a {person}"
    assert group.about(1, 3, "together") == "a close-up photo of three people, in the middle a {person}"
    assert group.about(1, 2, "whole") == (
        "a close-up photo of two people, on the left a person, on the right a {person}"
    )
    assert group.about(0, 1, "whole") == "a photo of a {person}"


# -- figures -----------------------------------------------------------------------------------------------------------


def test_faces_are_assigned_by_hand():
    """Four people along four axes; two pictures of people 2 and 0. The left place shows 2, then nobody; the right one
    shows 2 again, then 3 with a little of 0."""
    known = [torch.eye(4)[[person]] for person in range(4)]
    left = reading([True, False], embeddings=torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0]]))
    right = reading([True, True], embeddings=torch.tensor([[0.0, 0, 1, 0], [0.6, 0, 0, 0.8]]))
    assert group.assignment([left, right], [2, 0], known) == pytest.approx(
        {"accuracy": 0.5, "accuracy_all": 0.25, "csim": (1 + 0 + 0 + 0.6) / 4, "leakage": 1 / 4, "detection": 0.75}
    )


def test_of_one_person_it_is_told_how_often_they_are_taken_for_themselves():
    """Person 0 of three: the first picture is theirs, in the second person 1 is likest, the third shows nobody."""
    known = [torch.eye(3)[[person]] for person in range(3)]
    seen = reading([True, True, False], embeddings=torch.tensor([[1.0, 0, 0], [0.5, 0.8, 0.1], [0, 0, 0]]))
    assert group.told_apart(seen, 0, known) == pytest.approx({"of_2": (1 / 3 + 2 / 3) / 2, "of_3": 1 / 3})
    assert Run(method=OURS, count=1, group=4).members == [4]


def test_a_run_learns_everybody_once_and_every_figure_is_there(backbone, artifact, monkeypatch):
    monkeypatch.setattr(group, "SAMPLING", {"num_steps": 1, "guidance": 2.5})
    monkeypatch.setattr(group, "MADE", 1)
    learned = []
    monkeypatch.setattr(group, "train_person", lambda split, person: learned.append((split, person)) or artifact)
    asked = [Run(method=method, count=2, group=0, split="tuning") for method in METHODS]
    measured = list(group.run_all(asked))
    assert sorted(learned) == sorted(("tuning", person) for person in asked[0].members)
    assert all(set(one["figures"]) == set(group_report.METRICS) for one in measured)
    assert lines.read_lines(group.lines_file()) == measured
    assert load_photo(asked[0].file(group.PICTURES)).shape == (3, *CANVAS[2])


def test_a_person_is_learned_by_the_cores_trainer(monkeypatch):
    short = {**group.TRAINING, "inversion": {"num_steps": 0}, "tuning": {"num_steps": 1, "tasks": ("source",)}}
    monkeypatch.setattr(group, "TRAINING", {**short, "accumulate": 1})
    made = group.learned("tuning", 1)
    assert {token.name for token in made.tokens} >= {"subject"}
    assert any(value.abs().sum() for key, value in made.lora.items() if "lora_up" in key)


def test_every_source_that_decides_a_figure_is_in_the_key():
    assert reached(group.TINY_FOLDER.parent, ["group/sampler"]) - set(group.CORE_STAGES) <= {
        "files", "halves", "images", "kohya", "metadata", "types", "marks", "models", "sefi/config", "sefi/identity",
        "ldm", "sharing", "sheets", "small_recognisers",
    }  # fmt: skip
    assert {path.name for path in group.sources()} >= {
        "group.py",
        "attention.py",
        "people.py",
        "face_judge.safetensors",
    }


def test_the_first_bench_does_not_depend_on_this_one():
    assert not [path for path in runs.sources() if path.stem.startswith("group")]


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_tells_means_and_differences_and_shows_what_this_machine_made(tmp_path, monkeypatch):
    monkeypatch.setattr(group_report, "GRID_GROUPS", 1)
    done = group_report.table_runs(3)
    assert len(done) == len(set(done)) == 3 * len(CANVAS) * len(METHODS) + PEOPLE
    for run in done:
        lines.add_line(group.lines_file(), line(run, accuracy=0.6 + 0.3 * (run.method == OURS), of_3=0.9))
    lines.add_line(group.lines_file(), line(replace(done[0], split="tuning"), accuracy=0.0))
    assert [path.name for path in group_report.write_report()] == ["group.md", "group.json"]
    data = json.loads((tmp_path / "group.json").read_text())
    for count in CANVAS:
        rows = {(row["method"], row["metric"]): row["mean"] for row in data[str(count)]["ahead"]}
        assert rows[PROMPT, "accuracy"] == pytest.approx(0.3)
    assert "## 3 people, 3 groups" in (tmp_path / "group.md").read_text()
    assert {row["metric"]: row["mean"] for row in data["1"]["rows"]}["of_3"] == pytest.approx(0.9)
    for run in done:
        save_image(torch.full((3, 64, 2 * run.size[1]), 0.25), run.file(group.PICTURES))
    *_, shown = group_report.write_report()
    assert shown.name == "group.jpg"


def test_tuning_compares_wordings():
    done = group_report.tuning_runs(2)
    assert all(run.split == "tuning" and run.method != PROMPT for run in done)
    told = [line(run, accuracy=0.5 + 0.25 * (run.wording == "together")) for run in done]
    scores = group_report.tuning_scores(told)
    assert scores[f"{OURS}, 2 people"]["together"]["accuracy"] == 0.75
    assert scores[f"{OURS}, 2 people"]["alone"]["accuracy"] == 0.5


def test_bars_hold_and_miss_and_tell_what_was_not_measured():
    figures = {OURS: {"accuracy": 0.92, "leakage": 0.04}, PROMPT: {"accuracy": 0.5, "leakage": 0.1}, "passes": {}}
    made = [line(run, **figures[run.method]) for run in group_report.table_runs()]
    two, leak_of_two, three, leak_of_three = group_report.bars(group_report.table_lines(made))
    assert [bar.holds for bar in (two, leak_of_two, three, leak_of_three)] == [False, True, True, True]
    assert leak_of_two.figure == pytest.approx(0.01)
    few = [line(run, **figures[run.method]) for run in group_report.table_runs(2)]
    assert not any(bar.holds for bar in group_report.bars(group_report.table_lines(few)))
