"""The methods are on equal terms, and the figures are what they say."""

from __future__ import annotations

import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode, step_items
from portraitbench import runs
from portraitbench.measure import energy_distance
from portraitbench.methods import METHODS, PASSES, Unmasked, merge
from tests.small import portraits


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_as_many_unet_passes(name):
    config = METHODS[name].config(seed=0)
    phases = {"inversion": config.inversion.num_steps, "tuning": config.tuning.num_steps}
    assert (
        sum(len(step_items(config, phase, step)) for phase, steps in phases.items() for step in range(steps)) == PASSES
    )


def test_the_learning_rate_factor_reaches_every_rate():
    one, two = (METHODS["dreambooth"].config(0, factor) for factor in (1.0, 2.0))
    assert two.tuning.lora_learning_rate == 2 * one.tuning.lora_learning_rate
    assert two.inversion.token_learning_rate == 2 * one.inversion.token_learning_rate
    assert two.tuning.token_learning_rate == 0


def test_without_masks_every_pixel_counts_and_nothing_else_changes():
    config = METHODS["magicapture"].config(seed=0)
    encoded = encode(tiny(), portraits(2), portraits(2, seed=1), config)
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


def test_a_changed_source_is_another_table(monkeypatch, tmp_path):
    before = runs.results_key.__wrapped__()
    changed = tmp_path / "trainer.py"
    changed.write_text("# something else")
    monkeypatch.setattr(runs, "SOURCES", (*runs.SOURCES[1:], changed))
    assert runs.results_key.__wrapped__() != before
