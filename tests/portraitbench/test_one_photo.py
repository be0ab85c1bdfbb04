"""The second bench: methods on equal terms, edits that the judges read, and a report of what the lines hold."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture_core.images import load_photo, save_image
from magicapture_core.sefi.config import SefiConfig
from portraitbench import lines, one_photo, one_photo_report, report, runs, world
from portraitbench.labels import ATTRIBUTES
from portraitbench.one_photo import EDITS, FAMILIES, METHODS, OURS, UNTOUCHED, Run
from tests.portraitbench.test_measure import reading

SHOWN = one_photo.RESULTS  # what is committed
TRAINED = [name for name, method in METHODS.items() if method.changes is not None]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Results and pictures of this test alone."""
    for module in (one_photo, one_photo_report, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(one_photo, "CACHE", tmp_path / "cache")


def line(run: Run, **figures: float | None) -> dict[str, Any]:
    names = [*one_photo_report.METRICS, *EDITS]
    return {**vars(run), "figures": dict.fromkeys(names, 0.5) | figures}


# -- methods and edits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_has_as_many_unet_passes(name):
    assert one_photo.passes(METHODS[name].config(0)) == one_photo.passes(SefiConfig.preset("tiny"))


def test_the_whole_method_is_the_preset_itself_and_a_factor_reaches_its_rate():
    preset = SefiConfig.preset("tiny")
    assert METHODS[OURS].config(0) == preset
    assert Run(method=OURS, person=0, learning_rate_factor=3).config.learning_rate == 3 * preset.learning_rate


def test_each_ablation_adds_one_part():
    """From Textual Inversion's one word to SeFi-IDE, and the sweeps around it: what differs, learning rates apart."""

    def differing(one: str, two: str) -> set[str]:
        first, second = (METHODS[name].config(0).model_dump() for name in (one, two))
        return {key for key in first if first[key] != second[key]} - {"learning_rate"}

    assert differing("textual_inversion", "stages") == {"num_stages"}
    assert differing("stages", "split") == {"key_value_split"}
    assert differing("split", "loss") == {"attention_weight"}
    assert differing("loss", OURS) == {"parts"}
    assert METHODS["stages"].config(0).learning_rate == METHODS["loss"].config(0).learning_rate
    for name, weight in one_photo.WEIGHT_SWEEP.items():
        assert (differing(name, OURS), METHODS[name].config(0).attention_weight) == ({"attention_weight"}, weight)
    for name, count in one_photo.STAGE_SWEEP.items():
        assert (differing(name, OURS), METHODS[name].config(0).num_stages) == ({"num_stages"}, count)


def test_an_ordinary_word_is_a_mean_and_alike_for_keys_and_values():
    stages = torch.tensor([[[1.0], [2.0]], [[3.0], [8.0]]])  # [2,2,1]
    means = {name: METHODS[name].reader(stages) for name in one_photo_report.PLAIN}
    assert {name: mean.flatten().tolist() for name, mean in means.items()} == {
        "plain": [3.5, 3.5], "plain_keys": [2, 2], "plain_values": [5, 5]
    }  # fmt: skip
    assert means["plain"].shape == (1, 2, 1)
    assert METHODS[OURS].reader(stages) is stages


def test_edits_are_read_by_the_judges_family_by_family():
    attributes = torch.zeros(2, len(ATTRIBUTES), dtype=torch.bool)
    attributes[0, ATTRIBUTES.index("glasses")] = attributes[:, ATTRIBUTES.index("beard")] = True
    words = {"hair_color": "pink", "hat": "hat", "neckwear": "none", "background": "blue"}
    found = one_photo.obedience(dict.fromkeys(EDITS, reading([True, True], attributes=attributes, words=[words] * 2)))
    obeyed = {"pink_hair": 1, "beard": 1, "glasses": 0.5, "red_hat": 1, "blue_background": 1}
    assert {edit: found[edit] for edit in EDITS} == dict.fromkeys(EDITS, 0) | obeyed
    for family in FAMILIES:
        own = [obeyed.get(name, 0) for name, edit in EDITS.items() if edit.family == family]
        assert found[family] == pytest.approx(sum(own) / len(own))
    assert found["editability"] == pytest.approx(sum(found[family] for family in FAMILIES) / len(FAMILIES))


def test_edits_are_those_that_the_untouched_model_obeys():
    """As measured and committed; what it does not obey could not show what a learned word spoils."""
    obeyed = json.loads((SHOWN / "one-photo-prompts.json").read_text())
    assert set(obeyed) == set(one_photo.CANDIDATES)
    assert {name for name, share in obeyed.items() if share >= one_photo.LEAST_OBEYED} == set(EDITS)


def test_an_edit_stands_behind_the_sentence_or_before_the_person():
    config = METHODS[OURS].config(0)
    prompts = {name: one_photo.CANDIDATES[name].prompt(config, "<person>") for name in ("old", "glasses")}
    assert prompts == {
        "old": "a photo of the face of old <person>",
        "glasses": "a photo of the face of <person> wearing glasses",
    }


def test_one_photo_is_trained_on_and_others_are_compared_with():
    person = one_photo.photos(Run(method=OURS, person=1, split="tuning"))
    assert person.trained.scene.setting.framing == "close-up"
    assert len(person.unseen) == one_photo.OTHERS
    images = {picture.image.tobytes() for picture in (person.trained, *person.unseen)}
    assert len(images) == one_photo.OTHERS + 1
    who = world.identity("tuning", 1)
    assert all(picture.scene.subjects[0].identity == who for picture in (person.trained, *person.unseen))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_once_for_all_methods_that_share_it_and_every_figure_is_there(monkeypatch):
    monkeypatch.setattr(one_photo, "SAMPLING", {"num_steps": 1, "guidance": 2.5})
    monkeypatch.setattr(one_photo, "MADE", 1)
    monkeypatch.setattr(one_photo, "EDITED", 1)
    monkeypatch.setitem(one_photo.BASE, "num_steps", 1)
    edits = {name: EDITS[name] for name in ("beard", "glasses", "blue_background")}
    monkeypatch.setattr(one_photo, "EDITS", edits)
    train, trainings = one_photo.train_words, []

    def counted(run: Run) -> torch.Tensor:
        trainings.append(run.method)
        return train(run)

    monkeypatch.setattr(one_photo, "train_words", counted)
    asked = [Run(method=name, person=0, split="tuning") for name in (UNTOUCHED, OURS, "plain")]
    measured = list(one_photo.run_all(asked))
    assert trainings == [OURS]
    assert set(measured[0]["figures"]) == {*one_photo_report.METRICS, *edits}
    assert lines.read_lines(one_photo.lines_file()) == measured
    assert load_photo(asked[0].file(one_photo.PICTURES)).shape == (3, 64, 64 * (1 + len(edits)))
    stages = one_photo.trained(asked[1])
    assert stages.shape == (5, 2, 128)
    identity = one_photo.learned(asked[2])
    assert identity is not None
    assert torch.equal(identity.stages[0, 0], stages.mean((0, 1)))
    assert one_photo.learned(asked[0]) is None


def imported(path: Path, root: Path) -> set[str]:
    """The names below `root`, with slashes, of the modules that a file reaches by dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            names |= {folder / Path(*(node.module or alias.name).split(".")) for alias in node.names}
            names |= {folder / Path(*(node.module or "").split("."), alias.name) for alias in node.names}
    return {str(name.relative_to(root)) for name in names if name.with_suffix(".py").is_file()}


def reached(root: Path, start: list[str]) -> set[str]:
    found, ahead = set(), start
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += imported(root / f"{name}.py", root)
    return found


DECIDES_NOTHING = {  # reached by the trainer and the sampler, and of no weight in a run of this bench
    "artifact", "dino", "files", "heatmaps", "identity", "images", "ldm", "marks", "metadata", "models",
    "object_losses", "object_terms", "sheets", "types",
}  # fmt: skip


def test_every_source_that_decides_a_figure_is_in_the_key():
    core = reached(one_photo.CORE, ["sefi/trainer", "sampler"])
    assert core - DECIDES_NOTHING <= set(one_photo.CORE_STAGES)
    bench = reached(Path(one_photo.__file__).parent, ["one_photo"])
    assert bench - {"lines"} == set(one_photo.BENCH_STAGES)
    assert {path.name for path in one_photo.sources()} >= {"one_photo.py", "vocab.json", "face_judge.safetensors"}


def test_the_first_bench_does_not_depend_on_this_one():
    assert not [path for path in runs.sources() if path.stem.startswith("one_photo")]


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_tells_means_differences_sweeps_and_shows_what_this_machine_made(tmp_path, monkeypatch):
    monkeypatch.setattr(one_photo_report, "GRID_PEOPLE", 1)
    done = one_photo_report.table_runs(people=3, swept_people=2)
    assert len(done) == len(set(done))
    for run in done:
        ours = run.method == OURS
        lines.add_line(
            one_photo.lines_file(), line(run, csim=run.person / 10 + 0.3 * ours, editability=0.9 + 0.02 * ours)
        )
    assert [path.name for path in one_photo_report.write_report()] == ["one-photo.md", "one-photo.json"]
    text, data = ((tmp_path / f"one-photo.{kind}").read_text() for kind in ("md", "json"))
    assert text.startswith("# 3 people, one photo of each")
    assert "## Weight of the attention loss, 2 people" in text
    data = json.loads(data)
    [gap] = [row for row in data["ahead"] if (row["method"], row["metric"]) == ("textual_inversion", "csim")]
    assert (gap["mean"], gap["lo"], gap["n"]) == (pytest.approx(0.3), pytest.approx(0.3), 3)
    [harm] = [row for row in data["to_untouched"] if (row["method"], row["metric"]) == (OURS, "editability")]
    assert harm["mean"] == pytest.approx(0.02)
    [swept] = [row for row in data["sweeps"]["Number of stages"] if (row["method"], row["metric"]) == (OURS, "csim")]
    assert (swept["mean"], swept["n"]) == (pytest.approx(0.35), 2)  # of the sweep's people alone
    for run in done:
        save_image(torch.full((3, 64, 64 * (1 + len(EDITS))), 0.25), run.file(one_photo.PICTURES))
    *_, grid = one_photo_report.write_report()
    assert grid.name == "one-photo.jpg"
    assert load_photo(grid).shape[2] > 128 * (2 + len(EDITS))


def test_the_readmes_rows_are_those_of_the_measurement():
    section = (SHOWN.parent / "README.md").read_text(encoding="utf-8").split("\n## One photo")[1].split("\n## ")[0]
    table = SHOWN / "one-photo.md"
    measured = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    assert [row for row in section.splitlines() if row.startswith("|") and "[" in row and row not in measured] == []


def test_bars_hold_and_miss_and_tell_what_was_not_measured():
    done = one_photo_report.table_runs()
    told = {OURS: (0.3, 0.86), "textual_inversion": (0.2, 0.5), "inversion_likest": (0.4, 0.3), UNTOUCHED: (0.0, 0.9)}
    made = [line(run, csim=told[run.method][0], editability=told[run.method][1]) for run in done if run.method in told]
    rows = one_photo_report.table_lines(made)
    likeness, at_any_price, editability = one_photo_report.bars(rows)
    assert [bar.figure for bar in (likeness, at_any_price)] == [pytest.approx(0.1), pytest.approx(-0.1)]
    assert [bar.holds for bar in (likeness, at_any_price)] == [True, False]
    assert editability.figure == pytest.approx(-0.04)
    assert editability.holds
    for row in rows:
        row["figures"]["editability"] -= 0.02 * (row["method"] == OURS)
    assert not list(one_photo_report.bars(rows))[-1].holds
    assert [bar.figure for bar in one_photo_report.bars(rows[: -len(told)])] == [None] * 3


def test_learning_rates_are_chosen_on_people_that_no_table_holds():
    tried = one_photo_report.tuning_runs(2)
    assert {run.split for run in tried} == {"tuning"}
    scores = one_photo_report.tuning_scores(line(run, csim=run.attention_factor / 10 + run.person) for run in tried)
    assert set(scores) == {UNTOUCHED, *one_photo_report.TUNED}
    config = METHODS[OURS].config(0, 3.0, 2.0)
    found = scores[OURS][f"rate {config.learning_rate:g}, weight {config.attention_weight:g}"]
    assert found["csim"] == pytest.approx(0.5 + 0.2)
    assert one_photo_report.table_lines(line(run) for run in tried) == []
