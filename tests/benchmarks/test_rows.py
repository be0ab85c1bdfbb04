"""What a row's text means."""

import pytest

from benchmarks.ours import FEATURES
from benchmarks.rows import KINDS, PLANS, parse_row
from benchmarks.step import chosen, parser
from benchmarks.workload import OURS, Workload
from magicapture_core.types import MagiCaptureError


def test_a_row_is_a_name_a_size_and_pairs_with_marks():
    row = parse_row("kohya:512:12:bf16:checkpointing")
    marks = {"pixels": 512, "dtype": "bf16", "checkpointing": True}
    assert row.workloads == (Workload(**marks), Workload(method="kohya", **marks))
    assert (row.pairs, row.bar) == (12, 1.05)
    assert row.title.endswith("bf16, checkpointing")


def test_a_loss_is_set_against_the_same_without_it():
    on, off = parse_row("identity:512:3").workloads
    assert on.features == ("three tasks", "identity")
    assert off.features == ("three tasks",)


def test_only_the_sizes_of_the_bars_have_one():
    assert parse_row("refocusing:512:3").bar == 1.05
    assert parse_row("refocusing:64:3").bar is None
    assert parse_row("comfyui:64:3").bar == 0.25  # at least four times as fast


@pytest.mark.parametrize(
    "text", ["", "kohya", "kohya:64", "other:64:3", "kohya:x:3", "kohya:64:0", "kohya:65:3", "kohya:64:3:fp8"]
)
def test_what_is_no_row_is_refused_by_name(text):
    with pytest.raises(MagiCaptureError, match=f"^{text}: "):
        parse_row(text)


def test_every_kind_uses_known_features_and_is_in_every_plan():
    for kind in KINDS.values():
        for side in (kind.first, kind.second):
            assert set(side(Workload(pixels=64)).features) <= FEATURES.keys()
    for plan in PLANS.values():
        assert {text.partition(":")[0] for text in plan} == KINDS.keys()
        assert all(parse_row(text).pairs for text in plan)


def test_peers_without_a_tree_are_left_out_of_the_plan_and_refused_by_name():
    rows = chosen(parser().parse_args(["--kohya", "somewhere"]))
    methods = {workload.method for row in rows for workload in row.workloads}
    assert methods == {*OURS, "diffusers", "kohya"}
    with pytest.raises(MagiCaptureError, match="--comfyui"):
        chosen(parser().parse_args(["comfyui:64:2"]))
