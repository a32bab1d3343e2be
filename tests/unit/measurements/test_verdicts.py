"""Verdicts: what is the same is called the same, what differs is found, and what cannot be known is not claimed."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from darkroom.types import CompareMetric, CompareVerdict
from service.measurements.metrics import METRICS
from service.measurements.pictures import distances, measured
from service.measurements.verdicts import verdicts
from service.pocket.render import render
from service.pocket.world import sample_scene

VALUES: list[CompareMetric] = [metric for metric, info in METRICS.items() if info.kind == "value"]
Study = dict[tuple[str, str, int], dict[str, float]]


def a_study(
    score: Callable[[str, str, int], float | None],
    arms: tuple[str, ...] = ("base", "lora"),
    prompts: int = 4,
    seeds: int = 8,
    metric: str = "sharpness",
) -> Study:
    """Values of `metric` as `score(arm, prompt, seed)` has them; None is a cell without."""
    cells = [(a, f"prompt {p}", s) for a in arms for p in range(prompts) for s in range(seeds)]
    return {cell: {metric: value} for cell in cells if (value := score(*cell)) is not None}


def judged(study: Study, **changes) -> list[CompareVerdict]:
    arms = list(dict.fromkeys(arm for arm, _, _ in study))
    asked = {"arms": arms, "baseline": "base", "metrics": ["sharpness"], "decides": None, "better": None}
    return verdicts(study, **asked | changes)


def a_bit(arm: str, prompt: str, seed: int) -> float:
    """Noise that belongs to the cell."""
    return random.Random(f"{arm} {prompt} {seed}").gauss(0, 1)


def drawings(count: int) -> np.ndarray:
    rng = random.Random(4)
    scenes = [sample_scene(rng, hidden=0, captioned=0) for _ in range(count)]
    return (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_the_same_pictures_twice_differ_by_exactly_nothing():
    pictures = drawings(8)
    study = {
        (arm, "a scene", seed): measured(picture) | distances(picture, picture)
        for arm in ("base", "twin")
        for seed, picture in enumerate(pictures)
    }
    metrics = list(study["base", "a scene", 0])
    found = judged(study, metrics=metrics)
    assert [verdict.metric for verdict in found] == metrics
    for verdict in found:
        assert verdict.outcome == "identical"
        assert (verdict.pairs, verdict.wins, verdict.losses, verdict.p_value) == (8, 0, 0, None)
        if METRICS[verdict.metric].kind == "value":
            assert (verdict.mean_difference, verdict.interval, verdict.ties) == (0, (0, 0), 8)


@pytest.mark.parametrize("baseline", ["sharp", "blurred"])
def test_a_slight_blur_is_found_with_eight_pairs(baseline):
    pictures = {"sharp": drawings(8)}
    pictures["blurred"] = ndimage.gaussian_filter(pictures["sharp"], (0, 0.7, 0.7, 0))
    study = {
        (arm, "a scene", seed): measured(picture)
        for arm, of_arm in pictures.items()
        for seed, picture in enumerate(of_arm)
    }
    (verdict,) = judged(study, baseline=baseline)
    assert verdict.outcome == ("lower" if baseline == "sharp" else "higher")
    assert max(verdict.wins, verdict.losses) == verdict.pairs == 8
    assert verdict.win_rate in (0, 1)
    assert verdict.p_value == pytest.approx(2 / 2**8)


def test_intervals_of_arms_that_are_the_same_but_for_chance_hold_0_in_90_to_98_of_100_studies():
    draws = [lambda rng: rng.gauss(0, 1), lambda rng: rng.expovariate(1), lambda rng: rng.gauss(0, 1) ** 3]
    rng = random.Random(11)
    held = []
    for _ in range(30):
        cells = [(arm, f"prompt {p}", s) for arm in ("base", "same") for p in range(3) for s in range(8)]
        study = {
            cell: {m: 10 * len(cell[1]) + draws[i % 3](rng) for i, m in enumerate(VALUES)} for cell in cells
        }
        for verdict in judged(study, metrics=VALUES):
            assert verdict.interval is not None
            held.append(verdict.interval[0] <= 0 <= verdict.interval[1])
    assert len(held) == 300
    assert 0.90 <= sum(held) / len(held) <= 0.98


def test_hardly_any_study_of_eight_arms_without_effect_finds_one():
    rng = random.Random(12)
    arms = ("base", *(f"arm {i}" for i in range(8)))
    studies = [a_study(lambda *_: rng.gauss(0, 1), arms, prompts=2, seeds=8) for _ in range(100)]
    misled = [any(v.outcome in ("higher", "lower") for v in judged(study)) for study in studies]
    assert sum(misled) <= 10


def test_differences_are_within_prompt_and_seed():
    # Prompts differ by hundreds, and the arm adds 1 everywhere.
    study = a_study(
        lambda arm, prompt, seed: 100 * int(prompt[-1]) + a_bit("", prompt, seed) + (arm == "lora")
    )
    (verdict,) = judged(study)
    assert verdict.outcome == "higher"
    assert verdict.mean_difference == pytest.approx(1)
    assert verdict.interval == pytest.approx((1, 1))


def test_too_few_pairs_say_nothing_even_where_they_agree():
    (verdict,) = judged(a_study(lambda arm, p, s: a_bit("", p, s) + 5 * (arm == "lora"), prompts=1, seeds=5))
    assert verdict.outcome == "too_few"
    assert verdict.p_value == pytest.approx(2 / 2**5)
    assert "5 of 5 pairs differ, and 6 must" in verdict.note
    assert "add seeds" in verdict.note


def test_more_arms_need_more_pairs():
    arms = ("base", *(f"arm {i}" for i in range(8)))
    outcomes = {
        seeds: {
            verdict.outcome
            for verdict in judged(
                a_study(lambda arm, p, s: a_bit("", p, s) + 5 * (arm != "base"), arms, prompts=1, seeds=seeds)
            )
        }
        for seeds in (8, 9)
    }
    assert outcomes == {8: {"too_few"}, 9: {"higher"}}


def test_pairs_that_are_tied_do_not_count_towards_enough():
    (verdict,) = judged(a_study(lambda arm, p, s: float(arm == "lora" and s == 0), prompts=4, seeds=8))
    assert (verdict.outcome, verdict.wins, verdict.losses, verdict.ties) == ("too_few", 4, 0, 28)


def test_one_pair_has_a_mean_and_no_interval():
    (verdict,) = judged(a_study(lambda arm, p, s: float(arm == "lora"), prompts=1, seeds=1))
    assert (verdict.outcome, verdict.mean_difference, verdict.interval) == ("too_few", 1, None)


def test_a_metric_that_no_cell_has_is_absent():
    (verdict,) = judged(a_study(lambda *cell: 1.0), metrics=["clip_score"])
    assert (verdict.outcome, verdict.pairs, verdict.mean_difference) == ("absent", 0, None)
    assert (verdict.interval, verdict.p_value, verdict.corrected_p_value) == (None, None, None)


def test_cells_that_failed_and_values_that_are_no_numbers_leave_their_pairs_out():
    def score(arm: str, prompt: str, seed: int) -> float | None:
        if (arm, seed) == ("base", 0):
            return None
        return float("nan") if (arm, seed) == ("lora", 1) else a_bit(arm, prompt, seed)

    (verdict,) = judged(a_study(score, prompts=2, seeds=8))
    assert verdict.pairs == 2 * 6
    assert verdict.interval is not None
    assert np.isfinite(verdict.interval).all()


def test_pictures_of_different_sizes_lack_their_distances_and_keep_the_rest():
    base, large = drawings(8), drawings(8).repeat(2, axis=1).repeat(2, axis=2)
    study = {("base", "a scene", s): measured(p) | distances(p, p) for s, p in enumerate(base)} | {
        ("large", "a scene", s): measured(p) | distances(p, base[s]) for s, p in enumerate(large)
    }
    outcomes = {v.metric: v.outcome for v in judged(study, metrics=["sharpness", "ssim"])}
    assert outcomes == {"sharpness": "lower", "ssim": "absent"}


def test_a_few_extreme_pairs_do_not_speak_against_the_others():
    # Ten pairs are a little lower, ten much higher: the mean is beyond doubt, what to expect of a picture is not.
    study = a_study(
        lambda arm, p, s: 0.0 if arm == "base" else 10 + a_bit(arm, p, s) if s % 2 else -0.1,
        prompts=1,
        seeds=20,
    )
    (verdict,) = judged(study)
    assert verdict.corrected_interval is not None
    assert verdict.corrected_interval[0] > 0
    assert (verdict.outcome, verdict.wins, verdict.losses) == ("no_difference", 10, 10)
    assert "not the same way in most pairs" in verdict.note


def test_distances_are_told_with_their_interval_and_without_winners():
    study = a_study(lambda arm, p, s: 1 - 0.02 * abs(a_bit(arm, p, s)), metric="ssim")
    (verdict,) = judged(study, metrics=["ssim"])
    assert verdict.outcome == "lower"
    assert verdict.mean_difference == pytest.approx(
        np.mean([v["ssim"] for c, v in study.items() if c[0] == "lora"])
    )
    assert verdict.corrected_interval is not None
    assert verdict.corrected_interval[0] < verdict.mean_difference < verdict.corrected_interval[1] <= 1
    assert (verdict.wins, verdict.losses, verdict.ties, verdict.p_value) == (0, 0, 0, None)


def test_the_interval_of_a_distance_stops_where_pictures_are_equal():
    study = a_study(lambda arm, p, s: 9.0 if s == 0 else 0.0, metric="perceptual_distance", prompts=1)
    (verdict,) = judged(study, metrics=["perceptual_distance"])
    assert verdict.outcome == "higher"
    assert verdict.interval is not None
    assert verdict.interval[0] == 0


def test_corrected_figures_are_for_all_arms_together():
    arms = ("base", "one", "two", "three")
    shift = {"base": 0.0, "one": 0.0, "two": 0.6, "three": 2.0}
    found = judged(a_study(lambda arm, p, s: a_bit(arm, p, s) + shift[arm], arms, prompts=4, seeds=8))
    for verdict in found:
        assert verdict.interval is not None
        assert verdict.corrected_interval is not None
        assert (
            verdict.corrected_interval[0]
            < verdict.interval[0]
            < verdict.interval[1]
            < verdict.corrected_interval[1]
        )
        assert verdict.p_value is not None
        assert verdict.corrected_p_value is not None
        assert verdict.corrected_p_value >= verdict.p_value
    strongest = min(found, key=lambda verdict: verdict.p_value)
    assert strongest.arm == "three"
    assert strongest.corrected_p_value == pytest.approx(min(1, 3 * strongest.p_value))


def test_the_same_study_has_the_same_verdicts_in_whatever_order_its_cells_came():
    study = a_study(a_bit)
    assert judged(study) == judged(dict(reversed(study.items())), arms=["base", "lora"])
