"""A line of the table, computed by hand."""

from benchmarks.process import Turn
from benchmarks.rows import parse_row
from benchmarks.table import COLUMNS, HEADER, Side, line


def side(*seconds: float, gigabytes: float = 4.0, flops: int = 2 * 10**12) -> Side:
    return Side(turns=[Turn(seconds=s, peak_bytes=int(gigabytes * 1e9)) for s in seconds], flops=flops)


def test_a_line_says_all_that_was_found():
    row, theirs = parse_row("kohya:64:3:bf16"), side(2, 2, 2, gigabytes=5.0, flops=10**12)
    told = line(row, side(1, 2, 3), theirs, limit_tflops=4.0)
    cells = dict(zip(COLUMNS, (cell.strip() for cell in told.strip("| ").split(" | ")), strict=True))
    assert cells == {
        "row": "W0, ours / kohya sd-scripts, bf16",
        "px": "64",
        "first, s": "2.000 (1.000-3.000)",
        "second, s": "2.000 (2.000-2.000)",
        "ratio [95 %]": "1.000 [0.500, 1.500]",
        "bar": "<= 1.05: MISSED, memory: met",  # the interval's upper end counts
        "pairs": "3",
        "peak, GB": "4.00 / 5.00",
        "TFLOP": "2 / 1",
        "of limit": "25% / 12%",  # 2 TFLOP in 2 s on a card of 4 TFLOP/s
    }


def test_a_peer_that_takes_less_memory_or_is_no_slower_shows():
    row = parse_row("kohya:64:3")
    assert "<= 1.05: met, memory: MISSED" in line(row, side(*[1] * 30, gigabytes=5.0), side(*[1] * 30), None)


def test_a_bar_wants_thirty_pairs():
    assert "<= 1.05: met, few pairs |" in line(parse_row("refocusing:512:29"), side(*[1] * 29), side(*[1] * 29), None)
    assert "<= 1.05: met |" in line(parse_row("refocusing:512:30"), side(*[1] * 30), side(*[1] * 30), None)


def test_steps_that_do_not_all_do_the_same_are_told_by_their_means():
    """The identity loss fired in one of two: no single count of operations is that of its steps."""
    row = parse_row("identity:512:2:bf16")
    fired = Side(turns=[Turn(seconds=s, peak_bytes=1, fired=s > 1) for s in (1.0, 2.0)], flops=10**12)
    told = line(row, fired, side(1.0, 1.0, flops=10**12), limit_tflops=1.0)
    assert "of means" in told
    assert "| 1.500 [1.000, 2.000] |" in told
    assert "| 2, fired in 1 |" in told
    assert told.endswith("| - / 1 | - / 100% |")


def test_the_limit_is_that_of_bf16_alone():
    assert line(parse_row("kohya:64:1"), side(1), side(1), limit_tflops=4.0).endswith("| 2 / 2 | - / - |")


def test_what_could_not_be_counted_is_a_dash():
    told = line(parse_row("comfyui:128:1"), side(1), side(2, flops=0), None)
    assert "| 2 / - | - / - |" in told
    assert "| - | 1 |" in told  # no bar at this size


def test_the_header_is_a_table_of_the_columns():
    head, rule = HEADER.splitlines()
    assert head.count("|") == rule.count("|") == len(COLUMNS) + 1
