"""The lines of `benchmarks.gpu`: G1 to G10, one function each, and what they share."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import first_image, full_size, parity
from benchmarks.gpu_sides import Side
from benchmarks.gpu_suite import Suite
from benchmarks.interleave import Contender, interleave, wall
from benchmarks.orders import files, run
from benchmarks.report import Row, row, times_as_fast
from darkroom.types import SchedulerName
from service.engine.orders import HandOver, Order


def parity_small(suite: Suite) -> None:
    """Latents of the engine beside those of the stock pipelines, full size, float32, small images."""
    models = full_size.build(suite.scale.sizes, device=suite.device, dtype=torch.float32)
    found = parity.differences(models, suite.profile, suite.scale.parity_edge)
    suite.kept.add("parity", {"tolerance": parity.TOLERANCE, "differences": found})
    worst = max(found.values())
    suite.rows.append(Row("parity, float32: largest difference", worst, "", goal=parity.TOLERANCE))
    del models
    suite.free()


def step(suite: Suite) -> None:
    """G1: a base step with guidance."""

    def timed(side: Side) -> Contender:
        steps = suite.scale.timed_steps
        return lambda number: side.step_seconds(suite.order("step", number, steps=steps, hand_over=None))

    _compare(suite, "G1", f"base CFG step, {suite.scale.edge} px", timed, "ms", 27)


def long_job(suite: Suite) -> None:
    """G2: prompt to encoded bytes."""
    _whole_job(suite, "G2", suite.scale.long_job, 1.40)


def short_job(suite: Suite) -> None:
    """G3: the same with fewer steps."""
    _whole_job(suite, "G3", suite.scale.short_job, 0.87)


def everything_but_the_unet(suite: Suite) -> None:
    """G4: the whole job with UNets that cost nothing, in two steps and, to see the schedulers, in all."""

    def bypassed(steps: int) -> Callable[[Side], Contender]:
        def contender(side: Side) -> Contender:
            half = HandOver(0.5, 6.0, 2.5)
            work = wall(
                lambda number: side.job(suite.order("rest", number, steps=steps, hand_over=half)),
                settle=suite.settle,
            )

            def measured(number: int) -> float:
                with side.bypassed():
                    return work(number)

            return measured

        return contender

    _compare(suite, "G4", "everything but the UNet", bypassed(2), "ms", 45)
    steps = suite.scale.long_job
    _compare(suite, "G4 with schedulers", f"the same in {steps} steps", bypassed(steps), "ms", None)


def eight_large(suite: Suite) -> None:
    """G7: eight different jobs at once beside one by one."""
    _eight(suite, "G7", suite.scale.edge, 1.20)


def eight_small(suite: Suite) -> None:
    """G8: the same for small pictures."""
    _eight(suite, "G8", suite.scale.small_edge, 1.60)


def first_images(suite: Suite) -> None:
    """G9 and G10: peak device memory, and process start to first image, each side in a process of its own."""
    suite.free()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = full_size.build(suite.scale.sizes, device=suite.device, dtype=suite.dtype)
        weights_bytes = sum(
            module.num_parameters() * suite.dtype.itemsize
            for module in (*models.unets.values(), models.vae, models.text_encoder, models.text_encoder_2)
        )
        if shutil.disk_usage(folder).free < 1.2 * weights_bytes:
            suite.leave_out("G9 and G10", f"the weights need {weights_bytes / 1e9:.0f} GB on disk")
            return
        first_image.save(models, folder)
        del models
        suite.free()
        steps, edge = suite.scale.short_job, suite.scale.edge
        found = {
            side: first_image.measure(side, folder, dtype=suite.dtype, edge=edge, steps=steps)
            for side in ("engine", "plain")
        }
    suite.kept.add("G9 and G10", {"job": f"{edge} px, {steps} steps", "weights_bytes": weights_bytes} | found)
    for side, figures in found.items():
        peak = figures["peak_allocated_bytes"]
        goal = suite.goal(13.6) if side == "engine" else None
        note = "" if peak else "the CPU has no memory of its own"
        suite.rows.append(Row(f"G9 peak memory: {side}", peak and peak / 1e9, "GB", goal=goal, note=note))
    for side, figures in found.items():
        goal = suite.goal(15.0) if side == "engine" else None
        suite.rows.append(Row(f"G10 start to first image: {side}", figures["seconds"], "s", goal=goal))


def _whole_job(suite: Suite, name: str, steps: int, goal: float) -> None:
    def timed(side: Side) -> Contender:
        return wall(lambda number: side.job(suite.order(name, number, steps=steps)), settle=suite.settle)

    what = f"{steps} steps to encoded bytes, {suite.scale.edge} px"
    _compare(suite, name, what, timed, "s", goal)


def _compare(
    suite: Suite,
    name: str,
    what: str,
    timed: Callable[[Side], Contender],
    unit: str,
    goal: float | None,
) -> None:
    """Measure all sides, record them, and make a row of each."""
    contenders = {side: timed(found) for side, found in suite.sides().items()}
    taken = interleave(contenders, suite.rounds)
    suite.kept.add(name, {"what": what} | taken.figures("engine"))
    times = 1000 if unit == "ms" else 1
    for side in contenders:
        note = ""
        if side != "engine":
            note = f"the engine is {taken.ratio(side, 'engine').median:.2f} times as fast"
        suite.rows.append(
            row(
                f"{name} {what}: {side}",
                taken.spread(side),
                unit,
                times=times,
                goal=suite.goal(goal) if goal is not None and side.startswith("engine") else None,
                note=note,
            )
        )


_MIXED: tuple[SchedulerName, ...] = ("euler", "dpmpp_2m_karras", "ddim", "unipc")


def _eight(suite: Suite, name: str, edge: int, goal: float) -> None:
    """Eight jobs that differ in prompt, seed, steps and scheduler."""

    def jobs(number: int, take: str) -> list[Order]:
        return [
            suite.order(
                f"{name} {take} {index}",
                number,
                edge=edge,
                steps=suite.scale.mixed_steps + index % 3,
                scheduler=_MIXED[index % len(_MIXED)],
                seeds=(index,),
            )
            for index in range(8)
        ]

    engine, plain = suite.engine(), suite.sides()["plain"]

    def at_once(number: int) -> None:
        orders = jobs(number, "together")
        for order, done in zip(orders, run(engine.engine, *orders), strict=True):
            files(order, done)

    def in_a_row(side: Side) -> Callable[[int], object]:
        return lambda number: [side.job(order) for order in jobs(number, "alone")]

    taken = interleave(
        {
            "engine_at_once": wall(at_once, settle=suite.settle),
            "engine_in_a_row": wall(in_a_row(engine), settle=suite.settle),
            "plain_in_a_row": wall(in_a_row(plain), settle=suite.settle),
        },
        min(suite.rounds, 3),
    )
    suite.kept.add(name, {"edge": edge} | taken.figures("engine_at_once"))
    what = f"{name} 8 different jobs at once, {edge} px"
    suite.rows += [
        times_as_fast(
            f"{what}: over one by one",
            taken.ratio("engine_in_a_row", "engine_at_once"),
            at_least=suite.goal(goal),
        ),
        times_as_fast(f"{what}: over plain", taken.ratio("plain_in_a_row", "engine_at_once")),
    ]
