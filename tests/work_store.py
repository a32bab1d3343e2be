"""Fixtures: the store of datasets, train jobs and comparisons, in SQLite and PostgreSQL. Conftests import them."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

import servers
from darkroom.types import (
    Arm,
    CompareCell,
    CompareEvaluations,
    ComparePlan,
    CompareRequest,
    GenerateRequest,
    LoraUse,
    MetricInfo,
    PictureSettings,
    PlannedArm,
    Refiner,
    TrainRequest,
)
from lora_registry import faults
from lora_registry.database import Database
from service.compare.table import ComparisonTable, Draft
from service.jobs.table import JobTable
from service.store.database import connect, location
from service.store.files import files
from service.store.schema import metadata

DATASET = "sha256:" + "d" * 64
MODEL = "f" * 64
_numbers = count()


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder in memory where that is possible: each write waits for the disk, and a shared disk is slow."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="work-", dir=where) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def work_postgres() -> Iterator[servers.Postgres]:
    """A running PostgreSQL, with the store's tables in its database `postgres`."""
    with servers.postgres() as server:
        server.start()
        connect(server.url("postgres")).close()
        yield server


@pytest.fixture(scope="session")
def migrated_work(tmp_path_factory) -> Path:
    """A SQLite store as the migrations make it; copied, as a migration takes a tenth of a second."""
    folder = tmp_path_factory.mktemp("migrated")
    connect(location("", folder)).close()
    return folder / "work.sqlite3"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, data) -> Iterator[str]:
    """A database of each kind, without a table."""
    if request.param == "sqlite":
        yield location("", data)
        return
    import psycopg

    server = request.getfixturevalue("work_postgres")
    name = f"work_{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield server.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def work_url(request, data) -> str:
    """A database of each kind with empty tables. They are the same ones for all tests: leave them as they are."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_work"), data)
        return location("", data)
    import psycopg

    url = request.getfixturevalue("work_postgres").url("postgres")
    # A database for each test would take longer than most tests.
    with psycopg.connect(url, autocommit=True) as connection:
        for rows in reversed(metadata.sorted_tables):
            connection.execute(f"DELETE FROM {rows.name}")
    return url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def connections(url: str) -> Iterator[Callable[[], Database]]:
    """Connects to the database, as often as wanted."""
    databases = []

    def another() -> Database:
        databases.append(connect(url))
        return databases[-1]

    yield another
    for database in databases:
        database.close()


@pytest.fixture
def opened(work_url, data, clock):
    """Opens the table of this test, as often as wanted: each is another process's view of it."""
    with connections(work_url) as another:
        yield lambda clock=clock: JobTable(another(), files("", data), clock=clock)


@pytest.fixture
def opened_comparisons(work_url, data, clock):
    """As `opened`, the table of comparisons."""
    with connections(work_url) as another:
        yield lambda: ComparisonTable(another(), files("", data), clock=clock)


@pytest.fixture
def comparisons(opened_comparisons) -> ComparisonTable:
    return opened_comparisons()


@pytest.fixture
def table(opened) -> JobTable:
    return opened()


@pytest.fixture
def local(migrated_work, data, clock) -> Iterator[JobTable]:
    """A table in SQLite."""
    shutil.copy(migrated_work, data)
    database = connect(location("", data))
    yield JobTable(database, files("", data), clock=clock)
    database.close()


@pytest.fixture
def armed():
    """Arms a fault for the rest of the test."""
    yield faults.load
    faults.load("")


def request(name: str = "fox") -> TrainRequest:
    return TrainRequest(kind="subject", name=name, dataset=DATASET, instance_prompt="a photo of sks fox")


def new(table: JobTable, name: str = "fox") -> str:
    """The id of a new job."""
    return table.create(request(name), max_train_steps=100)[0].id


def draft(
    prompts: Sequence[str] = ("a red circle",), seeds: Sequence[int] = (7, 2**64 - 1), *, model: str = MODEL
) -> Draft:
    """A comparison of two arms, planned: the base, and the base with a LoRA and an earlier hand-over."""
    base = PictureSettings(num_inference_steps=6, guidance_scale=5)
    loras = (LoraUse(ref="ink@2", scope="uncond", blocks={"mid_block": 0.5}),)
    with_lora = PictureSettings(loras=loras, refiner=Refiner(denoising_end=0.6))
    request = CompareRequest(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        base=base,
        arms=(Arm(name="plain"), Arm(name="ink", set=with_lora, prompt="{prompt}, in ink")),
        metric="sharpness",
        name="Does the ink help?",
    )
    arms = [
        PlannedArm(name="plain", settings=base),
        PlannedArm(name="ink", settings=PictureSettings(**(given(base) | given(with_lora)))),
    ]
    matrix = [(prompt, seed, arm) for prompt in prompts for seed in seeds for arm in arms]
    cells = tuple(
        CompareCell(
            index=index,
            arm=arm.name,
            prompt=prompt,
            seed=seed,
            request=GenerateRequest(prompt=prompt, seed=seed, **given(arm.settings)),
        )
        for index, (prompt, seed, arm) in enumerate(matrix)
    )
    plan = ComparePlan(
        arms=arms,
        baseline="plain",
        prompts=list(prompts),
        seeds=list(seeds),
        cells=len(cells),
        pictures=len(cells),
        evaluations=CompareEvaluations(planned=12 * len(cells), naive=12 * len(cells)),
        swaps=1,
        estimated_seconds=3.5,
        metrics=["sharpness"],
        fits=True,
    )
    metrics = (
        MetricInfo(metric="sharpness", title="sharpness", kind="value", better="higher", decides=True),
    )
    return Draft(request, plan, cells, metrics, model, pinned='{"ink@2": "sha256:abc"}')


def given(settings: PictureSettings) -> dict[str, object]:
    """The fields that were named."""
    return {name: getattr(settings, name) for name in settings.model_fields_set}


def at_once(*calls):
    """What each gives or raises, all begun at the same moment."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(index, call):
        barrier.wait()
        try:
            results[index] = call()
        except Exception as exc:
            results[index] = exc

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
