"""Tables: pairs are averaged and drawn again, differences are paired, what could not be measured is left out."""

from __future__ import annotations

from typing import Any

import pytest

from portraitbench import __main__, nets, runs
from portraitbench.bars import Bar, bars
from portraitbench.table import METRICS, by_pair, differences, interval, means, to_json, to_markdown


def line(method: str, pair: int, csim: float | None, seed: int = 0) -> dict[str, Any]:
    figures = dict.fromkeys(METRICS, 0.5) | {"csim": csim}
    return {"method": method, "pair": pair, "seed": seed, "figures": figures}


def test_seeds_are_averaged_within_a_pair_and_what_was_not_measured_is_left_out():
    lines = [line("dreambooth", 0, 0.2), line("dreambooth", 0, 0.4, seed=1), line("dreambooth", 1, None)]
    assert by_pair(lines, "csim") == {"dreambooth": {0: pytest.approx(0.3)}}


def test_a_constant_has_no_width_and_a_spread_has_some():
    assert interval([0.5] * 8) == (0.5, 0.5, 0.5)
    mean, low, high = interval([0.0, 1.0] * 8)
    assert mean == 0.5
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8


def test_differences_are_paired():
    """Pairs that vary by 1, a method that is always 0.1 behind: the difference is 0.1 without width."""
    lines = [line("magicapture", pair, 0.1 + pair / 8) for pair in range(8)]
    lines += [line("dreambooth", pair, pair / 8) for pair in range(6)]
    [found] = [row for row in differences(lines) if row.metric == "csim"]
    assert (found.method, found.n) == ("dreambooth", 6)
    assert (found.mean, found.lo, found.hi) == (pytest.approx(0.1),) * 3
    [ours] = [row for row in means(lines) if row.metric == "csim" and row.method == "magicapture"]
    assert ours.hi - ours.lo > 0.3


def test_the_tables_say_what_they_hold():
    lines = [line("magicapture", 0, 0.6), line("dreambooth", 0, 0.25)]
    text = to_markdown(means(lines), ["csim"])
    assert text.splitlines()[0] == "|  | CSIM |"
    assert text.splitlines()[2:] == [
        "| DreamBooth (LoRA) | 0.250 [0.250, 0.250] |",
        "| MagiCapture | 0.600 [0.600, 0.600] |",
    ]
    data = to_json("abc", means(lines), differences(lines))
    assert (data["format"], data["key"]) == (1, "abc")
    assert data["ahead"][0]["mean"] == pytest.approx(0.35)
    assert set(data["rows"][0]) == {"method", "metric", "mean", "lo", "hi", "n"}


def test_bars_hold_miss_and_tell_what_was_not_measured():
    lines = [line("magicapture", pair, 0.6) for pair in range(16)]
    lines += [line("dreambooth", pair, 0.7) for pair in range(16)]
    lines += [line("textual_inversion", pair, 0.3) for pair in range(16)]
    lines += [line("custom_diffusion", pair, 0.3) for pair in range(15)]  # one pair is missing
    lines += [line("without_cp", pair, 0.56) for pair in range(16)]
    found = {bar.name.removesuffix(", lower end of 95 %"): bar for bar in bars(lines)}
    assert found["CSIM ahead of textual_inversion"].holds
    assert not found["CSIM ahead of dreambooth"].holds
    assert not Bar(name="a tie is not ahead", figure=0.0, least=0.0, exceeds=True).holds
    assert found["CSIM ahead of custom_diffusion"].figure is None
    assert not found["CSIM ahead of custom_diffusion"].holds
    assert found["Style against the best rival"].holds
    assert found["CSIM that composed prompts add"].figure == pytest.approx(0.04)
    assert not found["CSIM that composed prompts add"].holds
    assert Bar(name="only told", figure=0.0).holds


@pytest.mark.parametrize(("share", "holds"), [(0.0, True), (0.04, True), (0.1, False)])
def test_the_split_style_alone_must_not_show_the_person(share, holds):
    """Against the untouched model, pair by pair: chance itself holds, and what is near it; 0.1 above it does not."""
    lines = [line(method, pair, 0.5) for method in ("untouched", "split") for pair in range(16)]
    for one in lines:
        chance = one["pair"] / 100
        one["figures"]["style_only_csim"] = chance + (share if one["method"] == "split" else 0)
    [found] = [bar for bar in bars(lines) if "split style alone" in bar.name]
    assert found.figure == pytest.approx(-share)
    assert found.holds is holds
    [missing] = [bar for bar in bars(lines[:-1]) if "split style alone" in bar.name]
    assert not missing.holds


def test_figures_that_an_older_line_does_not_know_are_left_out():
    older = line("magicapture", 0, 0.5)
    del older["figures"]["style_only_csim"]
    assert by_pair([older], "style_only_csim") == {}
    assert by_pair([older], "csim") == {"magicapture": {0: 0.5}}


def test_leakage_is_compared_where_both_found_a_face():
    """0.3 against 0.6 in fifteen pairs; where one found no face the other's 0.9 does not count."""
    lines = [line(method, pair, 0.5) for method in ("magicapture", "without_ar") for pair in range(17)]
    for one in lines:
        ours = one["method"] == "magicapture"
        one["figures"]["subject_leakage"] = (None if ours else 0.9) if one["pair"] == 0 else 0.3 if ours else 0.6
    [found] = [bar for bar in bars(lines) if "leakage" in bar.name]
    assert found.figure == pytest.approx(0.5)
    assert found.holds


def test_missing_weights_are_one_line_and_exit_2(monkeypatch, capsys, tmp_path):
    runs.the_bench.cache_clear()
    monkeypatch.setattr(nets, "WEIGHTS", tmp_path)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["portraitbench", "run", "--pairs", "1", "--methods", "magicapture"])
    with pytest.raises(SystemExit) as exit_info:
        __main__.main()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("training_recogniser.safetensors is missing")
