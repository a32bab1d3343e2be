"""Pictures while a train job works on the same device: what a request waits for, and what the job loses by it.

python -m benchmarks.device_sharing [--rounds N] [--quick] [--cores N]

The device is a core to which service and job are bound: as on a card, what one of them does there the other cannot do
at that time. Every policy has a service and a job by HTTP, as processes. The jobs take turns: those that do not have
theirs are stopped by a signal, so that all policies meet the same machine. Prints; `make bench` records.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch; benchmarks.cpu says why

from PIL import Image

from benchmarks import training
from benchmarks.interleave import Rounds, interleave
from benchmarks.over_http import served
from benchmarks.report import Row, row, table
from darkroom import Darkroom, Unavailable
from darkroom.types import GenerateRequest, JobEvent, TrainJob
from service.jobs.processes import Holder
from service.jobs.table import JobTable
from service.store import database, files

Policy = Literal["share", "pause", "separate"]

STEPS = 20
_STARTUP_SECONDS = 180.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Extent:
    """How much is measured in a round."""

    requests: int
    """Of a turn, one every `every_seconds`. The turns of a round must be shorter than a lease: others stand still."""
    every_seconds: float
    quiet_seconds: float
    """Of a turn, in which the job has the device to itself, before the first request."""
    lendings: int
    """Jobs that have the device until they are done."""
    lent_steps: int
    """Of such a job."""


FULL = Extent(requests=4, every_seconds=2.0, quiet_seconds=3.0, lendings=5, lent_steps=40)
SHORT = Extent(requests=2, every_seconds=1.0, quiet_seconds=2.0, lendings=1, lent_steps=5)


@dataclass(frozen=True)
class Turn:
    """When a job had the device to itself, and from when to when it met requests; seconds since the epoch."""

    resumed_at: float
    asked_at: float
    ended_at: float


@dataclass
class Side:
    """A service of one policy, and the job that it has."""

    client: Darkroom
    job: TrainJob
    process: Holder
    turns: list[Turn] = field(default_factory=list)

    def take_turn(self, extent: Extent, numbers: Iterator[int], *, trains: bool) -> list[float]:
        """Seconds of each request. The job stands still before and after, and all the while unless it `trains`."""
        resumed_at = time.time()
        if trains:
            self.process.send(signal.SIGCONT)
            time.sleep(extent.quiet_seconds)
        asked_at, seconds = time.time(), []
        for place in range(extent.requests):
            _sleep_until(asked_at + place * extent.every_seconds)
            seconds.append(_seconds_of(self.client, next(numbers)))
        _sleep_until(asked_at + extent.requests * extent.every_seconds)
        if trains:
            self.process.send(signal.SIGSTOP)
            self.turns.append(Turn(resumed_at, asked_at, time.time()))
        return seconds

    def end(self) -> list[JobEvent]:
        """All that happened to the job, which is cancelled."""
        self.process.send(signal.SIGCONT)
        self.client.train.cancel(self.job)
        return [event for event in self.client.train.events(self.job) if isinstance(event, JobEvent)]


@dataclass(frozen=True)
class Lending:
    """A job that had the device until it was done, and what callers were told who asked for pictures all the while."""

    drawn_before: int
    refused: int
    codes: tuple[str, ...]
    retry_after_seconds: float
    """That a refusal named."""
    lent_seconds: float
    """From the first refusal to the last."""
    back_after_seconds: float
    """From the job's end until a request was accepted again. Below 0: the device came back before the job had ended."""


def measure(rounds: int, extent: Extent = FULL, *, cores: int = 1) -> tuple[dict[str, Any], list[Row]]:
    """Figures for the record, and the rows: `share` and `separate` beside no job at all; then `pause`."""
    asked, paces = _trickle(rounds, extent, cores)
    lendings = _lent(extent, cores)
    figures = {
        "job": f"pocket model, pictures of {STEPS} steps by base and refiner, one every {extent.every_seconds:g} s; "
        "a subject of 16 pictures, batch 8, rank 8",
        "cores": cores,
        "request_seconds": {
            name: asdict(asked.spread(name)) | {"p95": p95(seconds), "count": len(seconds)}
            for name, seconds in asked.seconds.items()
        },
        "request_over_no_job": {name: asdict(asked.ratio(name, "no job")) for name in paces},
        "request_more_than_no_job_seconds": {
            name: asdict(more := asked.difference(name, "no job"))
            | {"p95": p95(_differences(asked, name)), "in_train_steps": more.median / step_seconds(pace)}
            for name, pace in paces.items()
        },
        "separate_over_share": asdict(asked.ratio("separate", "share")),
        "train_steps_per_second": {
            name: {which: asdict(pace.spread(which)) for which in pace.seconds}
            | {"asked_over_quiet": asdict(pace.ratio("asked", "quiet"))}
            for name, pace in paces.items()
        },
        "pause": [asdict(lending) for lending in lendings],
    }
    return figures, [*rows_of_requests(asked, paces), *rows_of_lendings(lendings)]


def rows_of_requests(asked: Rounds, paces: Mapping[str, Rounds]) -> list[Row]:
    """`paces` are the steps a second of each policy's job, `quiet` and `asked`."""
    found = [
        row(
            f"picture while a job trains, {name} over no job",
            asked.ratio(name, "no job"),
            "",
            note=f"p50 {_p50(asked, name):.0f} ms of {_p50(asked, 'no job'):.0f}, "
            f"p95 {p95(asked.seconds[name]) * 1000:.0f} of {p95(asked.seconds['no job']) * 1000:.0f}",
        )
        for name in paces
    ]
    found.append(
        row(
            "picture while a job trains, separate over share",
            asked.ratio("separate", "share"),
            "",
            note=f"a train step takes {step_seconds(paces['share']) * 1000:.0f} ms",
        )
    )
    return found + [
        row(f"steps of the job with requests over without, {name}", pace.ratio("asked", "quiet"), "")
        for name, pace in paces.items()
    ]


def rows_of_lendings(lendings: Sequence[Lending]) -> list[Row]:
    back = Rounds({"back": [lending.back_after_seconds for lending in lendings]}).spread("back")
    refused = sum(lending.refused for lending in lendings)
    codes = sorted({code for lending in lendings for code in lending.codes})
    note = f"{refused} of 503 {' and '.join(codes)}, Retry-After {lendings[0].retry_after_seconds:g} s"
    return [row("pictures again after a job that had the device, pause", back, "s", note=note)]


def p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def step_seconds(pace: Rounds) -> float:
    """Of a job that has the device to itself."""
    return 1 / pace.spread("quiet").median


def steps_per_second(progress: Sequence[JobEvent], began: float, ended: float) -> float:
    """Steps a second from the first to the last report in a span of time; 0 where the job came to fewer than two."""
    told = [event for event in progress if began <= event.at.timestamp() <= ended]
    if len(told) < 2:
        return 0.0
    return (told[-1].step - told[0].step) / (told[-1].at - told[0].at).total_seconds()


def _p50(asked: Rounds, name: str) -> float:
    return asked.spread(name).median * 1000


def _differences(asked: Rounds, name: str) -> list[float]:
    pairs = zip(asked.seconds[name], asked.seconds["no job"], strict=True)
    return [one - other for one, other in pairs]


def _trickle(rounds: int, extent: Extent, cores: int) -> tuple[Rounds, dict[str, Rounds]]:
    """Seconds of the requests of all turns, and steps a second of the jobs, turn by turn."""
    seconds: dict[str, list[float]] = {"no job": [], "share": [], "separate": []}
    # Another prompt for each: the engine remembers what it has encoded.
    numbers = count()
    with ExitStack() as stack:
        sides: dict[Policy, Side] = {
            policy: stack.enter_context(_side(policy, cores)) for policy in ("share", "separate")
        }

        def contender(name: str, side: Side, trains: bool, _number: int) -> float:
            taken = side.take_turn(extent, numbers, trains=trains)
            seconds[name] += taken
            return sum(taken)

        turns = {"no job": ("share", False), "share": ("share", True), "separate": ("separate", True)}
        interleave(
            {
                name: partial(contender, name, sides[policy], trains)
                for name, (policy, trains) in turns.items()
            },
            rounds,
            warm_ups=0,
        )
        paces = {policy: _paces(side.turns, side.end()) for policy, side in sides.items()}
    return Rounds(seconds), paces


def _paces(turns: Sequence[Turn], events: Sequence[JobEvent]) -> Rounds:
    progress = [event for event in events if event.type == "progress"]
    quiet = [steps_per_second(progress, turn.resumed_at, turn.asked_at) for turn in turns]
    if not all(quiet):
        raise RuntimeError(
            "a job that had the device to itself hardly made a step in a turn; take longer turns"
        )
    return Rounds(
        {
            "quiet": quiet,
            "asked": [steps_per_second(progress, turn.asked_at, turn.ended_at) for turn in turns],
        }
    )


@contextmanager
def _side(policy: Policy, cores: int) -> Iterator[Side]:
    """A service that has drawn a picture, and a job that has made a step and was stopped after it."""
    with tempfile.TemporaryDirectory() as folder, _served(policy, Path(folder), cores) as client:
        client.wait_until_ready(timeout_seconds=_STARTUP_SECONDS)
        _seconds_of(client, 10_000)
        job = _train(client, steps=50_000)
        while not client.train.get(job).step:
            time.sleep(_LOOK_SECONDS)
        with closing(database.connect(database.location("", Path(folder)))) as connection:
            (held,) = JobTable(connection, files.files("", Path(folder))).held()
        side = Side(client, job, Holder.parse(held.holder))
        side.process.send(signal.SIGSTOP)
        try:
            yield side
        finally:
            side.process.send(signal.SIGCONT)
            client.train.cancel(job)


def _train(client: Darkroom, *, steps: int) -> TrainJob:
    """A job that does nothing but steps; what it learns is of no interest."""
    with tempfile.TemporaryDirectory() as folder:
        for place, example in enumerate(training.pictures(16, 64)):
            Image.fromarray(example.pixels_HWC()).save(Path(folder) / f"{place:02d}.png")
        dataset = client.datasets.upload(folder)
    return client.train.subject(
        "benchmark",
        dataset,
        instance_prompt="a photo of sks",
        evaluate=False,
        recipe={"max_train_steps": steps, "rank": 8, "sample_prompts": (), "checkpoint_every": steps},
    )


def _lent(extent: Extent, cores: int) -> list[Lending]:
    with tempfile.TemporaryDirectory() as folder, _served("pause", Path(folder), cores) as client:
        client.wait_until_ready(timeout_seconds=_STARTUP_SECONDS)
        return [lending(client, extent.lent_steps) for _ in range(extent.lendings)]


def lending(client: Darkroom, steps: int) -> Lending:
    """Train, and ask for pictures until one is made after a refusal. `client` retries nothing."""
    job = _train(client, steps=steps)
    drawn_before, refusals = 0, []  # type: int, list[tuple[float, Unavailable]]
    for number in count():
        asked_at = time.time()
        try:
            _seconds_of(client, number)
        except Unavailable as refused:
            refusals.append((asked_at, refused))
        else:
            if refusals:
                break
            drawn_before += 1
        time.sleep(_LOOK_SECONDS)
    ended = client.train.wait(job, progress=False, timeout_seconds=_STARTUP_SECONDS)
    assert ended.finished_at is not None
    return Lending(
        drawn_before,
        len(refusals),
        tuple(sorted({refused.code for _, refused in refusals})),
        refusals[0][1].retry_after_seconds or 0.0,
        refusals[-1][0] - refusals[0][0],
        asked_at - ended.finished_at.timestamp(),
    )


def _seconds_of(client: Darkroom, number: int) -> float:
    request = GenerateRequest(
        prompt=f"a red circle above {number} green stars",
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        seed=number,
    )
    started = time.perf_counter()
    client.generate_request(request)
    return time.perf_counter() - started


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


@contextmanager
def _served(policy: Policy, data: Path, cores: int) -> Iterator[Darkroom]:
    """A client, which retries nothing, of a service with this policy; it and its jobs have the last `cores`."""
    with ExitStack() as stack:
        with _bound_to(cores):  # which the process that is begun here inherits
            service = served(1, data, max_retries=0, settings={"DARKROOM_GPU_SHARING": policy})
            client = stack.enter_context(service)
        yield client


@contextmanager
def _bound_to(cores: int) -> Iterator[None]:
    """Processes that are started inside the block have the last `cores` of this one's."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[-cores:]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_sharing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each policy (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="shorter turns")
    parser.add_argument("--cores", type=int, default=1, help="that are the device (%(default)s)")
    chosen = parser.parse_args()
    _, rows = measure(chosen.rounds, SHORT if chosen.quick else FULL, cores=chosen.cores)
    print(table(rows))


if __name__ == "__main__":
    main()
