"""Intervals hold what they promise, and corrections are those of the papers."""

import numpy as np
import pytest

from service.measurements.statistics import fewest_pairs, holm, intervals, sign_test

STUDIES = 600
DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, size=shape),
    "few levels": lambda rng, shape: rng.choice([-0.25, 0, 0, 0.25], size=shape),
}


def coverage(draw, pairs: int, prompts: int, confidence: float) -> float:
    """Share of studies whose interval holds the true mean, 0. Prompts differ much more than pairs of one do."""
    rng = np.random.default_rng(pairs)
    groups = [pair % prompts for pair in range(pairs)]
    of_prompt = np.array([20.0 * group - 10 * (prompts - 1) for group in groups])[:, None]
    (found,) = intervals(draw(rng, (pairs, STUDIES)) + of_prompt, groups, [confidence])
    return float(((found[:, 0] <= 0) & (found[:, 1] >= 0)).mean())


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize(("pairs", "prompts"), [(8, 1), (16, 1), (16, 8), (24, 3)])
def test_the_interval_holds_the_mean_in_about_95_of_100_studies(draw, pairs, prompts):
    assert 0.92 <= coverage(draw, pairs, prompts, 0.95) <= 0.98


@pytest.mark.parametrize("pairs", [8, 32])
def test_an_interval_for_eight_arms_misses_the_mean_in_less_than_one_of_100_studies(pairs):
    assert coverage(DRAWS["normal"], pairs, 1, 1 - 0.05 / 8) >= 0.98


def test_a_higher_confidence_gives_a_wider_interval_about_the_same_mean():
    column = np.random.default_rng(0).normal(3, 1, (12, 1))
    narrow, wide = intervals(column, [0] * 12, [0.95, 0.99])
    assert wide[0, 0] < narrow[0, 0] < column.mean() < narrow[0, 1] < wide[0, 1]


def test_what_prompts_differ_by_does_not_widen_the_interval():
    pairs = np.array([[0.0], [1.0], [100.0], [101.0]])
    (within,) = intervals(pairs, ["a", "a", "b", "b"], [0.95])
    (across,) = intervals(pairs, ["a", "b", "c", "d"], [0.95])
    assert np.ptp(within) < 10 < np.ptp(across)


def test_one_pair_for_some_prompt_has_all_pairs_drawn_together():
    pairs = np.array([[0.0], [1.0], [100.0]])
    (some,) = intervals(pairs, ["a", "a", "b"], [0.95])
    (none,) = intervals(pairs, ["a", "b", "c"], [0.95])
    assert np.array_equal(some, none)


def test_the_same_seed_gives_the_same_interval():
    column = np.random.default_rng(0).normal(size=(9, 2))
    first, again, other = (intervals(column, [0] * 9, [0.95], seed=seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_column_has_the_interval_that_it_has_alone():
    columns = np.random.default_rng(0).normal(size=(9, 3))
    (together,) = intervals(columns, [0] * 9, [0.95])
    (alone,) = intervals(columns[:, 1:2], [0] * 9, [0.95])
    assert alone[0] == pytest.approx(together[1])


def test_differences_that_are_all_the_same_have_an_interval_without_width():
    (found,) = intervals(np.full((8, 1), 0.5), [0] * 8, [0.95])
    assert found.tolist() == [[0.5, 0.5]]


def test_the_sign_test_is_that_of_a_fair_coin():
    assert sign_test(8, 0) == pytest.approx(2 / 2**8)
    assert sign_test(7, 1) == pytest.approx(2 * 9 / 2**8)
    assert sign_test(4, 4) == 1
    assert sign_test(0, 0) is None


def test_holm_corrects_as_worked_out_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_counts_what_could_not_be_tested_and_stays_below_one():
    assert holm([0.02, None, 0.9]) == [pytest.approx(0.06), None, 1.0]


@pytest.mark.parametrize("arms", [1, 2, 3, 8, 63])
def test_the_fewest_pairs_are_the_first_that_a_corrected_sign_test_can_call_significant(arms):
    needed = fewest_pairs(arms)
    assert sign_test(needed, 0) * arms <= 0.05 < sign_test(needed - 1, 0) * arms
