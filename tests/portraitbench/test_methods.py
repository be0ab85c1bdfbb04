"""The methods are on equal terms, and the figures are what they say."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.config import TrainConfig
from magicapture_core.dataset import encode, step_items
from magicapture_core.types import MagiCaptureError
from portraitbench import lines, runs, world
from portraitbench.measure import energy_distance
from portraitbench.methods import METHODS, OURS, PASSES, Unmasked, merge, passes
from tests.small import portraits


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_as_many_unet_passes(name):
    assert passes(METHODS[name].config(seed=0)) == PASSES


def test_the_whole_method_is_the_preset_itself():
    assert METHODS[OURS].config(seed=0) == TrainConfig.preset("tiny")


def test_the_learning_rate_factor_reaches_every_rate():
    one, two = (METHODS["dreambooth"].config(0, factor) for factor in (1.0, 2.0))
    assert two.tuning.lora_learning_rate == 2 * one.tuning.lora_learning_rate
    assert two.inversion.token_learning_rate == 2 * one.inversion.token_learning_rate
    assert two.tuning.token_learning_rate == 0
    own = replace(METHODS["dreambooth"], learning_rate=2 * METHODS["dreambooth"].learning_rate).config(0)
    assert own.tuning.lora_learning_rate == two.tuning.lora_learning_rate


def test_the_attention_factor_reaches_the_attention_loss_alone():
    one, three = (METHODS["fastcomposer"].config(0, attention_factor=factor) for factor in (1.0, 3.0))
    assert three.loss.attention_weight == pytest.approx(3 * one.loss.attention_weight)
    assert three.model_copy(update={"loss": one.loss}) == one


def test_without_masks_every_pixel_counts_and_nothing_else_changes():
    config = METHODS["magicapture"].config(seed=0)
    encoded = encode(tiny(), {"subject": portraits(2), "style": portraits(2, seed=1)}, config)
    items = step_items(config, "tuning", 0)
    plain, unmasked = encoded.draw(config, items), METHODS["without_masks"].dataset(encoded).draw(config, items)
    assert isinstance(METHODS["without_masks"].dataset(encoded), Unmasked)
    assert unmasked.loss_masks.min() == 1 > plain.loss_masks.min()
    assert torch.equal(unmasked.latents, plain.latents)


def test_merge_changes_copies():
    base = {"a": {"b": 1, "c": 2}}
    assert merge(base, {"a": {"b": 5}, "d": 3}) == {"a": {"b": 5, "c": 2}, "d": 3}
    assert base == {"a": {"b": 1, "c": 2}}


def test_energy_distance_by_hand():
    """Points 0 and 2 against 1 and 3: 2 * 1.5 - 2 - 2 = -1 unbiased; far apart it grows with the distance."""
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    assert energy_distance(first, second) == pytest.approx(-1)
    assert energy_distance(first, second + 100) == pytest.approx(2 * 101 - 4)


def test_finished_runs_are_kept_and_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    done = []

    def measure(run):
        done.append(run.pair)
        if run.pair == 2:
            raise KeyboardInterrupt
        return {**vars(run), "figures": {"csim": run.pair / 10}}

    monkeypatch.setattr(runs, "measure_run", measure)
    asked = [runs.Run(method="magicapture", pair=pair, seed=0) for pair in (0, 1, 2)]
    with pytest.raises(KeyboardInterrupt):
        list(runs.run_all(asked))
    assert [line["figures"]["csim"] for line in runs.run_all(asked[:2])] == [0, 0.1]
    assert done == [0, 1, 2]


def test_a_run_that_fails_is_told_after_the_others_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)

    def measure(run):
        if run.pair == 0:
            raise MagiCaptureError("the loss is not a number")
        return {**vars(run), "figures": {}}

    monkeypatch.setattr(runs, "measure_run", measure)
    asked = [runs.Run(method="dreambooth", pair=pair, seed=0) for pair in range(3)]
    with pytest.raises(MagiCaptureError, match=r"1 of 3 runs failed.*pair=0.*not a number"):
        list(runs.run_all(asked))
    assert [line["pair"] for line in lines.read_lines(runs.lines_file())] == [1, 2]


def test_two_writers_lose_nothing_and_a_torn_line_is_none(tmp_path):
    file = tmp_path / "folder" / "runs.jsonl"
    lines.add_line(file, {"a": 1})
    kept_by_another = lines.read_lines(file)
    lines.add_line(file, {"b": 2})
    assert kept_by_another == [{"a": 1}]
    with file.open("a") as end:
        end.write('{"c": ')
    assert lines.read_lines(file) == [{"a": 1}, {"b": 2}]


def test_what_could_not_be_measured_is_null():
    assert lines.to_json(float("nan")) is None
    assert lines.to_json(0.123456789) == 0.12346


def test_references_are_pictures_that_no_training_saw():
    run = runs.Run(method="truth", pair=0, seed=0, split="tuning")
    for pictures in (runs.photos(run, "subject"), runs.photos(run, "style"), runs.true_pictures(run)):
        assert (len(pictures.trained), len(pictures.unseen)) == (runs.PHOTOS, runs.MADE)
        images = [picture.image.tobytes() for picture in (*pictures.trained, *pictures.unseen)]
        assert len(set(images)) == len(images)


def test_a_mixed_run_is_measured_against_its_own_person_and_the_next_ones_style():
    run = runs.Run(method="mixed", pair=3, seed=0, split="tuning")
    own, after = (runs.Run(method="split", pair=pair, seed=0, split="tuning") for pair in (3, 4))

    def pixels(pictures):
        return [picture.image.tobytes() for picture in pictures.unseen]

    assert (own.style_pair, run.style_pair) == (3, 4)
    assert pixels(runs.photos(run, "subject")) == pixels(runs.photos(own, "subject"))
    assert pixels(runs.photos(run, "style")) == pixels(runs.photos(after, "style"))
    assert pixels(runs.true_pictures(run)) == [
        picture.image.tobytes() for picture in world.truth("tuning", 3, 4, runs.PHOTOS + runs.MADE)[runs.PHOTOS :]
    ]


def test_an_older_line_is_the_run_that_it_was():
    run = runs.Run(method="dreambooth", pair=2, seed=1)
    older = {name: value for name, value in vars(run).items() if name != "attention_factor"}
    assert runs.Run.of({**older, "figures": {}}) == run


DECIDES_NOTHING = {  # reached by the trainer and the sampler, and of no weight in a run of the bench
    "artifact", "dino", "files", "images", "ldm", "marks", "metadata", "models", "object_losses", "object_terms",
    "sheets", "types",
}  # fmt: skip


def test_every_stage_that_decides_a_figure_is_in_the_tables_key():
    """All that the trainer, the sampler and what reads their work import of the core, and what these import."""
    reached, ahead = set(), ["trainer", "sampler", "halves", "heatmaps"]
    while ahead:
        if (name := ahead.pop()) not in reached:
            reached.add(name)
            tree = ast.parse((runs.CORE / f"{name}.py").read_text(encoding="utf-8"))
            found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
            names = [
                name for node in found for name in ([node.module] if node.module else [a.name for a in node.names])
            ]
            ahead += [name for name in names if name and (runs.CORE / f"{name}.py").is_file()]
    assert reached - DECIDES_NOTHING <= set(runs.CORE_STAGES)


def test_a_changed_source_is_another_table(monkeypatch, tmp_path):
    before = runs.results_key.__wrapped__()
    names = {path.name for path in runs.sources()}
    assert {
        "trainer.py",
        "small_recognisers.py",
        "face.py",
        "world.py",
        "methods.py",
        "rivals.py",
        "halves.py",
        "vocab.json",
        "judging_recogniser.safetensors",
    } <= names
    assert not {"report.py", "table.py", "demo.py"} & names
    changed = tmp_path / "trainer.py"
    changed.write_text("# something else")
    sources = runs.sources()
    monkeypatch.setattr(runs, "sources", lambda: [*sources[1:], changed])
    assert runs.results_key.__wrapped__() != before
