"""A registry's life in a few steps, each acknowledged when it is done; run as a program, one that dies at each step.

`python story.py kill DATABASE_URL FOLDER` kills a child at its first fault point, then one at its second, and so on
until one lives to the end, and checks the invariants after each. `python story.py random …` kills publishers at
random moments instead.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_registry import faults
from lora_registry.registry import Registry
from unit.lora_registry.invariants import NO_GRACE, check
from unit.lora_registry.makers import layers, peft, pocket, safetensors

MAX_POINTS = 500
RANDOM_DEATHS = 8


def lora(seed: int) -> bytes:
    return safetensors(peft(layers(pocket(), count=2), rank=2), {"seed": str(seed)})


def story(registry: Registry, name: str, seed: int = 0) -> Iterator[dict[str, str | None]]:
    """After each step what has been acknowledged by it: digests by reference, None for a reference that ended."""
    first = registry.publish(name, [lora(seed)])
    yield {f"{name}@1": first.digest}
    second = registry.publish(name, [lora(seed + 1)], alias="prod")
    yield {f"{name}@2": second.digest, f"{name}:prod": second.digest}
    registry.set_alias(name, "prod", 1)
    yield {f"{name}:prod": first.digest}
    again = registry.publish(name, [lora(seed + 1)])
    yield {f"{name}@{again.number}": again.digest}
    registry.delete(name, 2)
    yield {f"{name}@2": None}
    registry.gc(grace_seconds=NO_GRACE)
    yield {}
    third = registry.publish(name, [lora(seed + 1)])
    yield {f"{name}@3": third.digest}
    registry.delete_alias(name, "prod")
    yield {f"{name}:prod": None}


def settled(steps: list[dict[str, str | None]]) -> dict[str, str]:
    """What all these acknowledgements amount to, but for references that the unfinished step may have ended."""
    known: dict[str, str | None] = {}
    for step in steps:
        known |= step
    # The step that was cut off may have been done, only not acknowledged: it may move or end these.
    uncertain = {2: ":prod", 4: "@2", 7: ":prod"}.get(len(steps), "")
    return {
        ref: digest for ref, digest in known.items() if digest and not (uncertain and ref.endswith(uncertain))
    }


def _connect(database: str, folder: Path) -> Registry:
    return Registry.connect([pocket()], data=folder, database=database)


def _home(database: str, folder: Path, number: int) -> tuple[str, Path]:
    """Where story `number` takes place: on SQLite in a copy of its own, so that each check is as short as the first."""
    if not database.startswith("sqlite"):
        return database, folder
    home = folder / str(number)
    home.mkdir(parents=True)
    copy = shutil.copy(database.removeprefix("sqlite:///"), home / "registry.sqlite3")
    return f"sqlite:///{copy}", home


def _child(work: Callable[[int], None]) -> tuple[int, int]:
    """A forked process that does the work and is told where to write; (process id, where to read)."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            work(writing)
        except BaseException as exc:
            sys.stderr.write(f"{exc!r}\n")
            os._exit(1)
        os._exit(0)
    os.close(writing)
    return process, reading


def kill_at_points(database: str, folder: Path) -> None:
    # What differs between the databases is the commit; on PostgreSQL, where all is slower, a third of the points do.
    for number in range(1, MAX_POINTS, 1 if database.startswith("sqlite") else 3):
        url, home = _home(database, folder, number)

        def work(acknowledge: int, number: int = number, url: str = url, home: Path = home) -> None:
            faults.load(f"#{number}=kill")
            for step in story(_connect(url, home), f"n{number}", number * 10):
                os.write(acknowledge, json.dumps(step).encode() + b"\n")

        process, reading = _child(work)
        with os.fdopen(reading) as pipe:
            steps = [json.loads(line) for line in pipe]
        _, status = os.waitpid(process, 0)
        with _connect(url, home) as registry:
            check(registry, settled(steps), home / "blobs" / "incoming")
        if status == 0:
            sys.stdout.write(f"the last of {number - 1} points was passed\n")
            return
        assert os.WIFSIGNALED(status), f"the child failed by itself at point {number}"
    raise AssertionError("no clean pass")


def kill_at_random(database: str, folder: Path) -> None:
    chance = random.Random(4)
    acknowledged: dict[str, str] = {}
    for round_number in range(RANDOM_DEATHS):

        def work(acknowledge: int, start: int = round_number * 1000) -> None:
            registry = _connect(database, folder)
            for seed in range(start, start + 1000):
                version = registry.publish("ink-wash", [lora(seed)])
                os.write(acknowledge, f"{version.ref} {version.digest}\n".encode())

        process, reading = _child(work)
        with os.fdopen(reading) as pipe:
            for _ in range(chance.randrange(1, 6)):
                acknowledged |= [tuple(pipe.readline().split())]
            select.select([], [], [], chance.random() * 0.01)  # into the middle of something
            os.kill(process, signal.SIGKILL)
            acknowledged |= dict(line.split() for line in pipe if line.endswith("\n"))
        os.waitpid(process, 0)
        with _connect(database, folder) as registry:
            check(registry, acknowledged, folder / "blobs" / "incoming")
    sys.stdout.write(f"{len(acknowledged)} published\n")


if __name__ == "__main__":
    {"kill": kill_at_points, "random": kill_at_random}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
