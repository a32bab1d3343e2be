"""Contenders take turns, and ratios are taken pair by pair."""

import pytest

from benchmarks.interleave import Rounds, interleave


def test_contenders_take_turns_and_another_one_begins_every_round():
    turns = []

    def contender(name):
        return lambda number: turns.append((number, name)) or 1.0

    interleave({name: contender(name) for name in "ab"}, 3, warm_ups=1)
    assert "".join(name for _, name in turns) == "baabbaab"
    assert [number for number, _ in turns] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_warm_up_rounds_are_not_counted():
    taken = interleave({"a": lambda number: float(number)}, 2, warm_ups=3)
    assert taken.seconds == {"a": [3.0, 4.0]}


def test_a_ratio_holds_on_a_machine_that_grows_slower():
    rounds = Rounds({"slow": [2.0, 4.0, 20.0], "fast": [1.0, 2.0, 10.0]})
    ratio = rounds.ratio("slow", "fast")
    assert (ratio.quartile_1, ratio.median, ratio.quartile_3) == (2.0, 2.0, 2.0)
    assert rounds.difference("slow", "fast").median == 2.0


def test_quartiles_lie_between_measurements():
    spread = Rounds({"a": [1.0, 2.0, 3.0, 4.0]}).spread("a")
    assert (spread.quartile_1, spread.median, spread.quartile_3) == pytest.approx((1.75, 2.5, 3.25))


def test_one_round_has_no_spread():
    spread = Rounds({"a": [2.0]}).spread("a")
    assert spread.quartile_1 == spread.median == spread.quartile_3 == 2.0
