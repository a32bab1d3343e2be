"""The comparisons of `make bench`: what is drawn on both sides, and what is told of it."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import compare, cpu
from benchmarks.apart import apart
from benchmarks.compare import Extent, Spent, Taken
from benchmarks.record import Record
from service.compare.expansion import expanded
from service.compare.planning import cells_of, plan_of, prepared
from service.engine.costs import Costs


def planned(request, models):
    wanted = expanded(request)
    ready = prepared(cells_of(wanted, {}, models), {}, models)
    return plan_of(request, wanted, {}, ready, Costs(), (), max_cells=100, max_seconds=60, model="pocket")


def spent(seconds: float, *, unet: float) -> Spent:
    return Spent(
        seconds, seconds, seconds, cpu=seconds, unet=unet, unet_cpu=unet, evaluations=40, pictures=()
    )


def test_the_arms_share_no_step(models):
    plan = planned(compare.arms_that_share_nothing(compare.FULL, "one"), models)
    assert (len(plan.arms), plan.pictures) == (4, 16)
    assert plan.evaluations.planned == plan.evaluations.naive == 16 * 20 * 2


def test_the_sweep_shares_as_many_steps_as_its_goal_asks(models):
    evaluations = planned(compare.sweep_of_hand_overs(compare.FULL, "one"), models).evaluations
    assert evaluations.naive == 5 * 50 * 2
    assert evaluations.planned <= compare.SHARED_GOAL * evaluations.naive


def test_the_requests_are_those_of_the_cells(models):
    request = compare.arms_that_share_nothing(compare.SHORT, "one")
    assert [cell.request for cell in cells_of(expanded(request), {}, models)] == [
        *compare.requests_of(request)
    ]


def test_ratios_are_taken_round_by_round():
    comparisons, requests = (
        [spent(2.0, unet=1.0), spent(6.0, unet=3.0)],
        [spent(1.0, unet=0.5), spent(3.0, unet=1.5)],
    )
    taken = Taken({"comparison": comparisons, "requests": requests}, differing=0)
    figures = taken.figures()
    assert figures["answered"]["comparison_over_requests"]["quartile_3"] == 2.0
    assert figures["cpu_over_unet_cpu_of_requests"]["median"] == 4.0
    assert {name: share["median"] for name, share in figures["unet_share_of_drawing"].items()} == {
        "comparison": 0.5,
        "requests": 0.5,
    }


@pytest.mark.slow
def test_a_service_draws_the_same_pictures_both_ways():
    request = compare.sweep_of_hand_overs(Extent(steps=2, seeds=1, sweep_steps=10), "one")
    with apart(partial(compare.service, 1)) as ready:
        ready.wait_until_ready()
        _, comparison = ready.do(request)
        _, requests = ready.do(compare.requests_of(request))
    assert comparison.pictures == requests.pictures
    assert len(set(requests.pictures)) == 5
    assert requests.evaluations == 5 * 10 * 2
    assert comparison.evaluations < 0.45 * requests.evaluations
    assert 0 < comparison.unet_cpu < comparison.cpu
    assert 0 < comparison.unet < comparison.drawn < comparison.ended <= comparison.answered + 0.01
    assert requests.unet < requests.drawn == requests.answered


@pytest.mark.slow
def test_the_section_has_a_row_for_each_promise_and_its_pictures_are_equal(tmp_path):
    kept = Record("cpu", "python -m benchmarks.cpu --quick", torch.device("cpu"), tmp_path)
    rows = cpu.comparisons(replace(cpu.QUICK, compare=1), kept, 1, Extent(steps=2, seeds=1, sweep_steps=10))
    figures = json.loads(kept.file.read_text())["figures"]["comparisons"]
    for section in ("arms_that_share_nothing", "sweep_of_hand_overs"):
        assert figures[section]["differing_pictures"] == 0
        assert figures[section]["rounds"] == 1
    assert figures["arms_that_share_nothing"]["evaluations"]["comparison_over_requests"]["median"] == 1
    goals = {row.what: row.goal for row in rows}
    assert goals["4 arms over requests in a row, until drawn"] == 1.01
    assert goals["5 hand-overs over requests in a row, UNet evaluations"] == 0.45
