"""Intervals: what a figure says of its own uncertainty."""

import pytest

from service.pocket.intervals import difference, mean, share


def test_wilson_interval_agrees_with_the_textbook():
    figure = share("hits", [True] * 81 + [False] * 182)
    assert figure.low == pytest.approx(0.2553, abs=2e-4)
    assert figure.high == pytest.approx(0.3662, abs=2e-4)


def test_a_perfect_score_is_not_certain():
    assert share("hits", [True] * 20).low < 0.9


def test_bootstrap_interval_holds_the_mean_and_narrows_with_the_sample():
    few, many = mean("few", [0.0, 1.0] * 10), mean("many", [0.0, 1.0] * 1000)
    assert few.low < 0.5 < few.high
    assert many.high - many.low < few.high - few.low


def test_a_difference_meets_its_target_only_beyond_doubt():
    assert difference("clear", [1.1, 1.2, 1.15] * 10, [1.0] * 30).is_met
    assert not difference("doubtful", [1.5, 0.6, 1.0] * 4, [1.0] * 12).is_met


def test_a_share_meets_its_target_by_its_value():
    assert share("shape", [True] * 96 + [False] * 4, target=0.95).is_met
    assert not share("shape", [True] * 94 + [False] * 6, target=0.95).is_met
