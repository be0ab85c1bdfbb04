"""The grid of learning rates chooses by its own seeds alone; the report shows what the finished runs hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from magicapture_core.images import load_photo, save_image
from portraitbench import lines, report, runs, table, tune, world
from portraitbench.methods import METHODS
from portraitbench.parameters import Identity


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Results and pictures of this test alone."""
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(report, "RESULTS", tmp_path)


def line(run: runs.Run, csim: float = 0.5, style: float = 0.5) -> dict[str, Any]:
    return {**vars(run), "figures": dict.fromkeys(table.METRICS, 0.5) | {"csim": csim, "style": style}}


def test_the_best_sum_wins_and_the_grid_never_touches_the_tables_people():
    best = {"truth": 0.5, "textual_inversion": 2.0, "dreambooth": 0.5, "custom_diffusion": 1.0, "magicapture": 2.0}

    def is_best(run: runs.Run) -> bool:
        return run.learning_rate_factor == best.get(run.method)

    grid = tune.grid(2)
    found = tune.scores(line(run, style=0.6 if is_best(run) else 0.4) for run in grid)
    rates = {method: factor * METHODS[method].learning_rate for method, factor in best.items()}
    assert tune.best(found["rates"]) == rates
    assert json.loads(tune.to_text(found))["best rates"] == rates
    assert len(grid) == len(set(grid)) == 2 * (5 * 3 + 4 * 3 - 1)  # the whole method's middle is in both grids
    assert {run.split for run in grid} == {"tuning"}
    assert {run.split for run in tune.table_runs(list(METHODS), 2, 1)} == {"test"}


def test_a_weights_leakage_is_told_beside_its_sum():
    """Likest at the least weight, with a leakage that falls as the weight grows; a pair without a face has none."""

    def made(run: runs.Run) -> dict[str, Any]:
        told = line(run, csim=0.4 if run.attention_factor == 0.3 else 0.1, style=0.6)
        leakage = None if run.pair == 0 else 0.9 / (1 + run.attention_factor)
        return {**told, "figures": told["figures"] | {"subject_leakage": leakage}}

    found = tune.scores(map(made, tune.grid(2)))
    assert found["weights"].keys() == {"mean_then_square", "break_a_scene", "fastcomposer", "magicapture"}
    for factors in found["weights"].values():
        assert factors[0.3] == pytest.approx({"csim + style": 1.0, "subject_leakage": 0.9 / 1.3})
        assert factors[3.0] == pytest.approx({"csim + style": 0.7, "subject_leakage": 0.9 / 4})
    assert json.loads(tune.to_text(found))["weights"]["magicapture"]["3.0"]["subject_leakage"] == pytest.approx(0.225)


def test_a_table_holds_test_pairs_at_each_methods_own_rate_alone():
    wanted = runs.Run(method="dreambooth", pair=0, seed=0)
    others = [
        runs.Run(method="dreambooth", pair=0, seed=0, learning_rate_factor=0.5),
        runs.Run(method="dreambooth", pair=0, seed=0, split="tuning"),
        runs.Run(method="fastcomposer", pair=0, seed=0, attention_factor=3.0),
    ]
    assert tune.table_lines([line(run) for run in (*others, wanted)]) == [line(wanted)]


def test_skin_tones_are_three_parts_from_light_to_dark():
    lines = [line(runs.Run(method="magicapture", pair=pair, seed=0), csim=table.skin(pair)) for pair in range(9)]
    rows = {row.metric: row for row in table.csim_by_skin(lines)}
    assert [row.n for row in rows.values()] == [3, 3, 3]
    assert rows["csim_light"].hi < rows["csim_middle"].lo < rows["csim_middle"].hi < rows["csim_dark"].lo
    who = world.identity("test", 4)
    assert isinstance(who, Identity)
    assert table.skin(4) == who.skin


def test_the_report_writes_tables_and_a_grid_of_what_this_machine_made(tmp_path):
    done = tune.table_runs(["dreambooth", "magicapture"], report.GRID_PAIRS, 1)
    for run in done:
        lines.add_line(runs.lines_file(), line(run))
    assert [file.name for file in report.write_report()] == ["table.md", "table.json"]
    data = json.loads((tmp_path / "table.json").read_text())
    assert data["key"] == runs.results_key()
    assert {row["method"] for row in data["rows"]} == {"dreambooth", "magicapture"}
    assert {row["method"] for row in data["ahead"]} == {"dreambooth"}
    for run in done:
        save_image(torch.full((3, 64, 64 * runs.STRIP), 0.25), run.picture)
    *_, grid = report.write_report()
    assert grid.name == "grid.png"
    assert load_photo(grid).shape[2] > 5 * 64 * runs.STRIP * report.ENLARGE  # person, style, two methods, the truth


def test_rivals_and_split_adapters_have_small_tables_of_their_own(tmp_path):
    """Beside what they are compared with, and only where one of them was measured."""
    for run in tune.table_runs(["untouched", "magicapture", "split"], 1, 1):
        lines.add_line(runs.lines_file(), line(run))
    report.write_report()
    main, *small = (tmp_path / "table.md").read_text().split("\n## ")
    assert METHODS["split"].title not in main
    assert "style-only" not in main
    [apart] = small
    assert apart.startswith("Person and style apart")
    means = apart.split("MagiCapture minus")[0].splitlines()
    assert [row.split(" | ")[0] for row in means[4:] if row] == [
        "| untouched model", "| MagiCapture", "| split adapters"
    ]  # fmt: skip
    assert means[2].endswith("| CSIM of style-only pictures (less) | faces found in those |")
    assert {row["method"] for row in json.loads((tmp_path / "table.json").read_text())["ahead"]} == {
        "untouched",
        "split",
    }


def test_a_strip_is_the_first_pictures_side_by_side():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(runs.strip(images)[:, :, :8], images[0])
    assert runs.strip(images).shape == (3, 8, 8 * runs.STRIP)


def test_a_table_of_before_counts_until_todays_sources_are_measured(tmp_path, monkeypatch):
    """The fullest one, and no more once there is a line under today's key."""
    monkeypatch.setattr(runs, "results_key", lambda: "today")
    assert runs.table_key() == ""
    for key, count in (("old", 1), ("older", 2)):
        for pair in range(count):
            lines.add_line(runs.lines_file(key), line(runs.Run(method="truth", pair=pair, seed=0)))
    assert runs.table_key() == "older"
    lines.add_line(runs.lines_file(), line(runs.Run(method="truth", pair=0, seed=0)))
    assert runs.table_key() == "today"
