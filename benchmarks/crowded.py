"""What a crowded registry costs: the same request with a LoRA where the registry has 10, 100, 1 000 and 10 000 of them.

python -m benchmarks.crowded [--quick] [--rounds N] [--database postgresql://…]

With an empty PostgreSQL database its resolve, start-up and memory are measured as well. Prints; `make bench` records.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch; benchmarks.cpu says why

import torch
from sqlalchemy import insert, select

from benchmarks import over_http, swaps
from benchmarks.interleave import Contender, Rounds, interleave, wall
from benchmarks.registry import SIZES, milliseconds
from benchmarks.report import Row, row, table
from darkroom import Darkroom
from darkroom.types import GenerateRequest, LoraUse
from lora_registry import BaseModel, Registry
from lora_registry.database import Database
from lora_registry.schema import aliases, blobs, labels, loras, versions
from service.engine import models, presets

FEW = SIZES[:2]
STEPS = 2
REAL = 2
"""So many of the LoRAs are files for the pocket model; the others are entries of the catalogue without bytes."""
WARM_UPS = 2 * REAL
"""The first use of a LoRA reads its file; from then on it is in memory."""
RESOLVES = 200
"""In a row: one alone is too short for the clock of a busy machine."""
STRIDE = 7919
"""From one name to the next that is asked for: prime, so that all parts of an index are visited."""

_FRESH_PROCESS = """
import json, os, sys, time
begin, cpu = time.perf_counter(), time.process_time()
from pathlib import Path
from lora_registry import Registry
from lora_registry.families import sdxl
registry = Registry.connect([sdxl()], data=Path(sys.argv[1]), database=sys.argv[2])
registry.resolve("lora-00000")
seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
for place in range(int(sys.argv[3])):
    registry.resolve(f"lora-{place:05d}")
resident_bytes = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
print(json.dumps([seconds, cpu, resident_bytes]))
"""


@dataclass(frozen=True)
class Crowd:
    """A registry of so many LoRAs, from lora-00000 on; the first two are real."""

    size: int
    data: Path
    database: str = ""
    """Else SQLite in `data`."""

    def name(self, number: int) -> str:
        """Another one every time."""
        return f"lora-{number * STRIDE % self.size:05d}"

    def connect(self) -> Registry:
        base = BaseModel.from_folder("pocket SDXL", Path(presets.POCKET.base))  # type: ignore[arg-type]
        return Registry.connect([base], data=self.data, database=self.database)

    def fresh_process(self) -> tuple[float, float, int]:
        """Seconds to import the registry, open it and resolve a name, by the clock and of a core; then resident bytes
        when all were resolved."""
        command = [sys.executable, "-c", _FRESH_PROCESS, str(self.data), self.database, str(self.size)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds, cpu_seconds, resident_bytes = json.loads(said)
        return seconds, cpu_seconds, resident_bytes


@dataclass(frozen=True)
class Alone:
    """What registries take by themselves, without a service, by size."""

    resolves: Rounds
    starts: Rounds
    """Import, open and the first resolve, in a process of its own."""
    cpu: Rounds
    """Seconds of a core that a start takes: what it would take where nobody else wants the core."""
    resident: Rounds
    """Bytes of that process when it has resolved every name."""

    def add(self, other: "Alone") -> None:
        """Take other sizes in."""
        for field in fields(self):
            getattr(self, field.name).seconds.update(getattr(other, field.name).seconds)

    def figures(self) -> dict[str, Any]:
        resident = self.resident.seconds
        return {
            "resolve": _beside_few(self.resolves),
            "start": _beside_few(self.starts),
            "start_cpu": _beside_few(self.cpu),
            "resident_bytes": {size: asdict(self.resident.spread(size)) for size in resident},
        }

    def rows(self, kind: str) -> list[Row]:
        few, *more = self.resolves.seconds
        rows = [
            row(f"resolve, {kind}, {_of(size)}", self.resolves.spread(size), "ms", times=1000, goal=0.2)
            for size in (few, *more)
        ]
        for size in (few, *more):
            note = f"{self.cpu.spread(size).median:.2f} s of a core"
            start = f"start-up of the registry, {kind}, {_of(size)}"
            rows.append(row(start, self.starts.spread(size), "s", goal=0.5, note=note))
        for size in more:
            grown = self.resident.difference(size, few)
            memory = f"memory, all resolved, {kind}, {_of(size)} more than {few}"
            rows.append(row(memory, grown, "MB", times=1e-6, goal=20))
        return rows


def measure(rounds: int, sizes: Sequence[int] = SIZES) -> tuple[dict[str, Any], list[Row]]:
    """Figures for the record, and a row for each promise: services first, then SQLite by itself."""
    with tempfile.TemporaryDirectory() as folder:
        crowds = [Crowd(size, Path(folder) / str(size)) for size in sizes]
        files = lora_files()
        for crowd in crowds:
            publish(crowd, files)
            fill(crowd, REAL)
        figures, rows = _requests(crowds, rounds)
        alone = _alone(crowds, rounds)
    return figures | alone.figures(), rows + alone.rows("SQLite")


def measure_database(url: str, rounds: int, sizes: Sequence[int] = SIZES) -> list[Row]:
    """The rows of a database by itself. It grows from size to size, so here the sizes cannot take turns."""
    found, filled = Alone(Rounds({}), Rounds({}), Rounds({}), Rounds({})), REAL
    with tempfile.TemporaryDirectory() as folder:
        publish(Crowd(REAL, Path(folder), url), lora_files())
        for size in sizes:
            crowd = Crowd(size, Path(folder), url)
            fill(crowd, filled)
            filled = size
            found.add(_alone([crowd], rounds))
    return found.rows("PostgreSQL")


def lora_files() -> list[bytes]:
    """The real ones."""
    loaded = models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
    return [swaps.lora_file(loaded, seed) for seed in range(REAL)]


def publish(crowd: Crowd, files: Iterable[bytes]) -> None:
    """The real ones, into an empty registry."""
    with crowd.connect() as registry:
        for place, data in enumerate(files):
            words = {"triggers": [f"trigger {place}"], "tags": ["style"]}
            registry.publish(f"lora-{place:05d}", io.BytesIO(data), alias="prod", **words)


def fill(crowd: Crowd, filled: int) -> None:
    """The other entries, as copies of the rows that publishing the first one wrote; one by one 10 000 take minutes."""
    database = Database(crowd.database or f"sqlite:///{crowd.data / 'registry.sqlite3'}")
    of_first = {
        loras: loras.c.id == 1,
        blobs: blobs.c.digest.in_(select(versions.c.digest).where(versions.c.lora_id == 1)),
        versions: versions.c.lora_id == 1,
        labels: labels.c.version_id == 1,
        aliases: aliases.c.lora_id == 1,
    }
    with database.write() as connection:
        for of, which in of_first.items():
            rows = [row._asdict() for row in connection.execute(select(of).where(which))]
            changed = [_another(row, place) for place in range(filled, crowd.size) for row in rows]
            if changed:
                connection.execute(insert(of), changed)
    database.close()


def _another(row: dict[str, Any], place: int) -> dict[str, Any]:
    """A row of the first LoRA as that of the LoRA at this place."""
    digest = hashlib.sha256(str(place).encode()).hexdigest()
    changes = {
        "id": place + 1,
        "lora_id": place + 1,
        "version_id": place + 1,
        "name": f"lora-{place:05d}",
        "digest": digest,
        "data_sha256": digest[::-1],
        # Another summary for each: those that are alike are parsed once.
        "summary": str(row.get("summary")).replace('"metadata":{}', f'"metadata":{{"ss_steps":"{place}"}}'),
    }
    return {name: changes.get(name, value) for name, value in row.items()}


def _requests(crowds: Sequence[Crowd], rounds: int) -> tuple[dict[str, Any], list[Row]]:
    """One service a registry, all running, asked in turn: for a picture with a LoRA, and for what a name means."""
    tiers: set[str] = set()
    with ExitStack() as stack:
        clients = {crowd: stack.enter_context(over_http.served(1, crowd.data)) for crowd in crowds}
        for client in clients.values():
            client.wait_until_ready(timeout_seconds=180)
        pictures = interleave(
            {str(crowd.size): _picture(client, tiers) for crowd, client in clients.items()},
            rounds,
            warm_ups=WARM_UPS,
        )
        lookups = interleave(
            {str(crowd.size): _lookup(client, crowd) for crowd, client in clients.items()}, rounds
        )
    few, *more = pictures.seconds
    figures = {
        "job": f"pocket model, {STEPS} steps, another of {REAL} LoRAs by name every time, one thread a service",
        "tiers": sorted(tiers),
        "picture": _beside_few(pictures),
        "lookup_over_http": _beside_few(lookups),
    }
    rows = [
        row(f"picture with a LoRA, {_of(size)}", pictures.spread(size), "ms", times=1000)
        for size in (few, *more)
    ]
    for size in more:
        ratio = pictures.ratio(size, few)
        rows.append(row(f"picture with a LoRA, {_of(size)} over {few}", ratio, "", goal=1.05))
    for size in more:
        rows.append(row(f"a name over HTTP, {_of(size)} over {few}", lookups.ratio(size, few), ""))
    return figures, rows


def _picture(client: Darkroom, tiers: set[str]) -> Contender:
    def ask(number: int) -> None:
        use = LoraUse(ref=f"lora-{number % REAL:05d}")
        request = GenerateRequest(
            prompt="a red circle on white", num_inference_steps=STEPS, seed=number, loras=(use,)
        )
        (served,) = client.generate_request(request).loras
        if number >= WARM_UPS:
            tiers.add(served.tier)

    return wall(ask)


def _lookup(client: Darkroom, crowd: Crowd) -> Contender:
    return wall(lambda number: client.loras.version(crowd.name(number)))


def _alone(crowds: Sequence[Crowd], rounds: int) -> Alone:
    with ExitStack() as stack:
        opened = {crowd: stack.enter_context(crowd.connect()) for crowd in crowds}
        resolves = interleave(
            {str(crowd.size): _resolve(crowd, registry) for crowd, registry in opened.items()}, rounds
        )
    cpu: dict[str, list[float]] = {str(crowd.size): [] for crowd in crowds}
    resident: dict[str, list[float]] = {str(crowd.size): [] for crowd in crowds}

    def start(crowd: Crowd, _number: int) -> float:
        seconds, cpu_seconds, resident_bytes = crowd.fresh_process()
        cpu[str(crowd.size)].append(cpu_seconds)
        resident[str(crowd.size)].append(resident_bytes)
        return seconds

    starts = interleave({str(crowd.size): partial(start, crowd) for crowd in crowds}, max(2, rounds // 12))
    return Alone(resolves, starts, Rounds(cpu), Rounds(resident))


def _resolve(crowd: Crowd, registry: Registry) -> Contender:
    """The median of many."""

    def measured(number: int) -> float:
        names = [crowd.name(number * RESOLVES + turn) for turn in range(RESOLVES)]
        p50_milliseconds, _ = milliseconds(lambda turn: registry.resolve(names[turn]), RESOLVES)
        return p50_milliseconds / 1000

    return measured


def _beside_few(taken: Rounds) -> dict[str, Any]:
    """For the record: seconds of each size, and how many times those of the smallest they are."""
    few, *more = taken.seconds
    return {
        "rounds": len(taken.seconds[few]),
        "seconds": {size: asdict(taken.spread(size)) for size in taken.seconds},
        f"times_as_long_as_{few}": {size: asdict(taken.ratio(size, few)) for size in more},
    }


def _of(size: str) -> str:
    return f"{int(size):,} LoRAs".replace(",", " ")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowded", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="of requests (%(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"no more than {FEW[-1]} LoRAs")
    parser.add_argument(
        "--database", default="", help="URL of an empty PostgreSQL database, to measure as well"
    )
    chosen = parser.parse_args()
    sizes = FEW if chosen.quick else SIZES
    _, rows = measure(chosen.rounds, sizes)
    if chosen.database:
        rows += measure_database(chosen.database, chosen.rounds, sizes)
    print(table(rows))


if __name__ == "__main__":
    main()
