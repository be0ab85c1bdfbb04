"""Who begins, and what a ratio's interval is."""

from benchmarks.turns import ratio, take_turns


def test_the_sides_alternate_in_who_begins():
    order = []
    first, second = take_turns(lambda: order.append("a") or 1, lambda: order.append("b") or 2, pairs=3)
    assert "".join(order) == "baabba"
    assert (first, second) == ([1, 1, 1], [2, 2, 2])


def test_a_ratio_is_the_median_over_the_pairs_and_not_of_the_medians():
    found = ratio([1.0, 4.0, 9.0], [1.0, 2.0, 1.0])
    assert found.value == 2.0  # of 1, 2, 9; the ratio of the medians would be 4
    assert (found.low, found.high) == (1.0, 9.0)


def test_the_interval_is_that_of_the_median():
    """Of 101 equally spaced ratios the middle 95 % of medians lie within ranks 50 -+ 1.96 sqrt(101) / 2, or nearly."""
    found = ratio([1 + rank / 100 for rank in range(101)], [1.0] * 101)
    assert found.value == 1.5
    assert abs(found.low - 1.40) < 0.02
    assert abs(found.high - 1.60) < 0.02


def test_the_ratio_of_means_counts_the_rare_long_step():
    """Nine steps of 1 s and one of 11 s against 1 s: the median says 1, the seconds spent say 2."""
    found = ratio([1.0] * 9 + [11.0], [1.0] * 10, of_means=True)
    assert found.value == 2.0
    assert (found.low, found.high) == (1.0, 4.0)  # the long step is drawn 0 to 3 times in 95 % of the draws


def test_a_single_pair_has_no_spread():
    found = ratio([3.0], [2.0])
    assert (found.low, found.value, found.high) == (1.5, 1.5, 1.5)
