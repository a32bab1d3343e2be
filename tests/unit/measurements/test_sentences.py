"""What people read: notes, conclusions and warnings say what was found and no more."""

import random

import pytest

from darkroom.types import CompareMetric, CompareVerdict, Direction
from service.measurements.metrics import METRICS, described
from service.measurements.verdicts import conclusion, verdicts, warnings

SHIFTS = {"base": 0.0, "up": 2.0, "down": -2.0, "same": 0.0, "twin": None, "lost": float("nan")}


def judged(
    metric: CompareMetric = "sharpness",
    decides: CompareMetric | None = "sharpness",
    better: Direction | None = None,
    seeds: int = 8,
) -> dict[str, CompareVerdict]:
    """Verdicts by arm: one arm for each thing that can be found."""
    study = {}
    for arm, shift in SHIFTS.items():
        for prompt in ("a fox", "a cat"):
            for seed in range(seeds):
                drawn_as = "base" if shift is None else arm
                bit = random.Random(f"{drawn_as} {prompt} {seed}").gauss(0, 0.5)
                study[arm, prompt, seed] = {metric: bit + (shift or 0.0)}
    found = verdicts(
        study, arms=list(SHIFTS), baseline="base", metrics=[metric], decides=decides, better=better
    )
    return {verdict.arm: verdict for verdict in found}


def test_a_note_is_a_sentence_with_the_numbers():
    note = judged()["up"].note
    assert note.startswith("Sharpness of “up” is higher than that of “base” (+")
    assert note.endswith(" in 16 of 16 pairs.")


@pytest.mark.parametrize(
    ("better", "up", "down"), [("higher", "better", "worse"), ("lower", "worse", "better")]
)
def test_what_is_better_is_as_the_request_says(better, up, down):
    found = judged(better=better)
    assert found["up"].note.endswith(f", which is {up}.")
    assert found["down"].note.endswith(f", which is {down}.")


def test_nothing_is_better_where_nobody_said_what_is_good():
    for verdict in judged().values():
        assert "better" not in verdict.note
        assert "worse" not in verdict.note


def test_a_metric_knows_by_itself_that_more_adherence_is_better():
    found = judged("prompt_adherence", "prompt_adherence")
    assert found["down"].note.endswith("which is worse.")


def test_what_is_better_of_the_deciding_metric_is_not_of_the_others():
    assert "better" not in judged("contrast", decides="sharpness", better="higher")["up"].note


def test_metrics_that_do_not_decide_say_that_they_only_describe():
    assert judged(decides="contrast")["up"].note.endswith("This only describes: “Contrast” decides.")
    assert judged(decides=None)["up"].note.endswith("This only describes: no metric was named to decide.")
    assert "describes" not in judged(decides="sharpness")["up"].note


def test_no_difference_seen_is_not_called_equality():
    found = judged()
    assert "shows no difference to “base”" in found["same"].note
    assert "not the same as being equal" in found["same"].note
    assert "that of “base” to the last digit, in 16 pairs" in found["twin"].note
    assert "could not be measured" in found["lost"].note


def test_the_conclusion_names_every_arm_under_what_was_found_of_it():
    told = conclusion(
        list(judged(better="lower").values()), metric="sharpness", better="lower", baseline="base"
    )
    assert told.startswith("Sharpness decides, and lower is better. Better than “base”: “down” (-")
    for fact in (
        "Worse than “base”: “up”",
        "No clear difference",
        "“same”",
        "to the last digit: “twin”",
        ": “lost”",
    ):
        assert fact in told


def test_a_conclusion_without_a_good_way_says_higher_and_lower():
    told = conclusion(list(judged().values()), metric="sharpness", better=None, baseline="base")
    assert "neither way was said to be better" in told
    assert "Higher than “base”: “up”" in told
    assert "Lower than “base”: “down”" in told


def test_a_conclusion_from_too_few_seeds_asks_for_more():
    told = conclusion(list(judged(seeds=2).values()), metric="sharpness", better=None, baseline="base")
    assert "Too few pairs to say, where at least 8 must differ; add seeds: “up”" in told


def test_an_arm_may_have_any_name():
    names = {"base": '{"ref": "ink@2"}', "lora": "loras={0}, 100 %"}
    study = {
        (name, "a fox", seed): {"sharpness": seed % 3 + (arm == "lora")}
        for arm, name in names.items()
        for seed in range(8)
    }
    found = verdicts(
        study,
        arms=list(names.values()),
        baseline=names["base"],
        metrics=["sharpness"],
        decides="sharpness",
        better=None,
    )
    told = conclusion(found, metric="sharpness", better=None, baseline=names["base"])
    assert 'Higher than “{"ref": "ink@2"}”: “loras={0}, 100 %” (+1.00' in told


def test_nothing_is_concluded_where_no_metric_was_named():
    told = conclusion(list(judged(decides=None).values()), metric=None, better=None, baseline="base")
    assert "nothing is decided" in told
    assert "“up”" not in told


def test_a_distance_decides_nothing_about_what_is_better():
    found = judged("perceptual_distance", "perceptual_distance")
    told = conclusion(list(found.values()), metric="perceptual_distance", better=None, baseline="base")
    assert "not which are better" in told
    assert "“up”" in told
    assert "“lost” could not be measured" in told


def test_a_study_of_one_prompt_and_one_seed_is_warned_of():
    told = warnings([], metric=None, prompts=1, seeds=1, cells=2, failed=0)
    assert any("one seed a prompt" in warning for warning in told)
    assert any("one prompt" in warning for warning in told)


def test_failed_cells_and_missing_pairs_of_the_deciding_metric_are_warned_of():
    found = list(judged().values())
    told = warnings(found, metric="sharpness", prompts=2, seeds=8, cells=96, failed=16)
    assert told[0].startswith("16 of 96 cells failed.")
    assert told[1:] == ["Sharpness, which decides, could be measured in 0 of 16 pairs of “lost”."]


def test_a_sound_study_has_no_warnings():
    found = [verdict for verdict in judged().values() if verdict.arm != "lost"]
    assert warnings(found, metric="sharpness", prompts=2, seeds=8, cells=80, failed=0) == []


def test_the_table_of_metrics_marks_the_one_that_decides_with_the_way_that_was_asked_for():
    contrast, adherence = described(["contrast", "prompt_adherence"], "contrast", "lower")
    assert (contrast.decides, contrast.better) == (True, "lower")
    assert (adherence.decides, adherence.better) == (False, "higher")
    assert not any(info.decides for info in METRICS.values())


def test_only_scores_of_the_prompt_say_by_themselves_which_way_is_good():
    assert {metric for metric, info in METRICS.items() if info.better} == {
        "prompt_adherence",
        "clip_score",
        "pocket_accuracy",
        "pocket_quality",
    }
