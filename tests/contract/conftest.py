"""Services to call: the one that most tests share, and others with other settings or weights."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from in_process import Async, Caller, Served, Sync, settle
from lora_files import lora_file
from service import wiring
from service.engine import memory
from service.engine.engine import Engine
from service.engine.loras.residency import Watch
from service.metrics import Metrics
from service.settings import Settings
from service.wiring import Components


@pytest.fixture(scope="session")
def service() -> Iterator[Served]:
    """The service as it is by default, on the pocket model."""
    components = wiring.build(Settings(_env_file=None, model="pocket", device="cpu"))
    components.start()
    components.loras.registry().publish("ink", io.BytesIO(lora_file(1, count=40)))
    yield settle(components)
    components.close()


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def client(request, service) -> Caller:
    return service.caller(request.param)


@pytest.fixture(scope="session")
def reference(service) -> bytes:
    """The file that `GOOD` gives, whatever came before."""
    return service.caller().generate().image.data


@pytest.fixture
def serve(monkeypatch, models) -> Iterator[Callable[..., Served]]:
    """Starts services of other settings, or over other models, and stops them."""
    running: list[Components] = []

    def start(over=models, **settings: Any) -> Served:
        def load_engine(_settings: Settings, _metrics: Metrics, watch: Watch) -> Engine:
            return Engine(over, memory.PROFILES["24"], watch=watch)

        monkeypatch.setattr(wiring, "load_engine", load_engine)
        components = wiring.build(Settings(_env_file=None, model="pocket", **settings))
        running.append(components)
        components.start()
        return settle(components)

    yield start
    for components in running:
        components.close()
