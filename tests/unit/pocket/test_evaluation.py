"""The evaluation: who draws what is asked is praised, others are not; card and publication tell the truth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.pocket.card import write_card
from service.pocket.config import Config
from service.pocket.evaluate import binding, negatives, obedience, variety
from service.pocket.intervals import Figure, mean, read_figures, share, write_figures
from service.pocket.publish import beats, publish
from service.pocket.questions import Question, pair_questions, plain_questions, single_questions
from service.pocket.render import render
from service.pocket.world import PLACES, RADIUS_PX, RELATIONS, Scene, is_held_out

Drawing = Callable[[Sequence[str], Sequence[int], str | None], torch.Tensor]


def laid_out(scene: Scene, seed: int) -> Scene:
    """The asked scene with its things where the prompt wants them, moved a little by the seed."""
    nudge = seed % 3 - 1
    if scene.relation:
        dx, dy = RELATIONS[scene.relation]
        first, second = scene.things
        first = replace(first, x=32 + 15 * dx + nudge, y=32 + 15 * dy, radius=11)
        second = replace(second, x=32 - 15 * dx, y=32 - 15 * dy + nudge, radius=11)
        return replace(scene, things=(first, second))
    dx, dy = PLACES.get(scene.place, (0, 0))
    radius = sum(RADIUS_PX[scene.things[0].size]) / 2
    return replace(scene, things=(replace(scene.things[0], x=32 + dx + nudge, y=32 + dy, radius=radius),))


def obedient(questions: Sequence[Question], defects: dict[str, float] | None = None) -> Drawing:
    """Draws what is asked, with `defects` unless the negative prompt names them."""
    asked = {question.prompt: question.scene for question in questions}

    def draw(
        prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str | None = None
    ) -> torch.Tensor:
        spoilt = {name: v for name, v in (defects or {}).items() if name != negative_prompt}
        scenes = [laid_out(asked[p], s) for p, s in zip(prompts, seeds, strict=True)]
        return render([replace(scene, defects=spoilt) for scene in scenes])

    return draw


def by_name(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_questions_ask_only_for_held_out_combinations():
    for question in single_questions(60, seed=1):
        assert is_held_out(question.thing.shape, question.thing.colour, question.scene.background)
    for question in pair_questions(20, seed=1):
        assert any(is_held_out(t.shape, t.colour, question.scene.background) for t in question.scene.things)


def test_who_draws_what_is_asked_meets_every_target():
    singles, pairs = single_questions(48, seed=2), pair_questions(16, seed=2)
    figures = [*obedience(obedient(singles), singles), *binding(obedient(pairs), pairs)]
    assert [figure.name for figure in figures if not figure.is_met] == []


def test_who_draws_something_else_misses_them():
    questions = single_questions(24, seed=3)
    others = [replace(q, scene=o.scene) for q, o in zip(questions, reversed(questions), strict=True)]
    figures = by_name(obedience(obedient(others), questions))
    assert figures["shape"].value < 0.6
    assert not figures["object colour"].is_met


def test_swapped_colours_are_not_bound():
    questions = pair_questions(12, seed=4)
    swapped = []
    for question in questions:
        first, second = question.scene.things
        things = (
            replace(first, rgb=second.rgb, colour=second.colour),
            replace(second, rgb=first.rgb, colour=first.colour),
        )
        swapped.append(replace(question, scene=replace(question.scene, things=things)))
    figures = by_name(binding(obedient(swapped), questions))
    assert figures["both colours shown"].value > 0.9
    assert figures["two-object colour binding"].value == 0


def test_a_negative_prompt_that_removes_a_defect_improves_its_measure():
    questions = plain_questions(12, seed=5)
    figures = negatives(obedient(questions, {"blocky": 0.8}), questions)
    assert by_name(figures)["negative 'blocky' improves its measure"].is_met


def test_seeds_that_all_draw_the_same_are_found_out():
    questions = plain_questions(6, seed=6)
    still = render([laid_out(question.scene, 0) for question in questions])
    figures = by_name(variety(lambda *_: still, questions))
    assert not figures["seeds differ, pixels"].is_met


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A folder as a finished run leaves it, with next to nothing in it."""
    run = tmp_path / "run"
    (run / "weights" / "base").mkdir(parents=True)
    (run / "weights" / "base" / "model_index.json").write_text("{}")
    (run / "samples").mkdir()
    write_figures(
        [share("shape", [True] * 9 + [False], 0.95), mean("seconds a picture", [0.5])],
        run / "evaluation.json",
    )
    for stage in ("vae", "base", "refiner"):
        save_file({"w": torch.zeros(1)}, run / f"{stage}-state.safetensors", {"step": "700", "seconds": "90"})
    return run


def test_card_says_what_was_missed_and_how_long_training_took(finished_run: Path):
    write_card(finished_run, Config())
    card = (finished_run / "README.md").read_text()
    assert "Missed: shape is 0.900, asked ≥ 0.95." in card
    assert "| base | 40 | 700 | 1.5 |" in card


def test_published_run_replaces_the_package_parts(finished_run: Path, tmp_path: Path):
    write_card(finished_run, Config())
    package = tmp_path / "package"
    (package / "weights" / "old").mkdir(parents=True)
    publish(finished_run, package)
    assert not (package / "weights" / "old").exists()
    assert (package / "weights" / "base" / "model_index.json").exists()
    assert read_figures(package / "evaluation.json") == read_figures(finished_run / "evaluation.json")


def test_weights_beat_others_by_targets_met_then_by_shares():
    good, better = (
        share("shape", [True] * 96 + [False] * 4, 0.95),
        share("shape", [True] * 99 + [False], 0.95),
    )
    poor = share("shape", [True] * 90 + [False] * 10, 0.95)
    assert beats([good], [poor])
    assert beats([better], [good])
    assert not beats([good], [good])
