"""The life of a built service: loading, ready, draining, failed, closed, and what each tells the probes."""

import threading

import numpy as np
import pytest

from fake_engine import FakeEngine
from lora_registry import faults
from service import wiring
from service.errors import (
    EngineStopped,
    InvalidSettings,
    ModelLoading,
    ModelNotFound,
    UnusableImage,
    WeightsDamaged,
)
from service.settings import Settings
from service.wiring import Readiness


class Site:
    """A service whose load and canary are in the test's hands."""

    def __init__(self, monkeypatch) -> None:
        self.engine, self.loads, self.may_load = FakeEngine(), 0, threading.Event()
        self.load_error: Exception | None = None
        self.canary_error: Exception | None = None
        monkeypatch.setattr(wiring, "load_engine", self._load)
        monkeypatch.setattr(wiring.canary, "develop", self._develop)
        monkeypatch.setattr(wiring, "Guard", self._guard)
        self.damage: str | None = None
        self.components = wiring.build(Settings(_env_file=None, max_queue_seconds=7))

    def load(self) -> None:
        """Start, and wait for the end of loading."""
        self.components.start()
        self.finish_loading()

    def finish_loading(self) -> None:
        self.may_load.set()
        self.components._resident._thread.join(timeout=10)

    def metric(self, name: str, /, **labels: str) -> float | None:
        return self.components.metrics.registry.get_sample_value(f"darkroom_{name}", labels)

    def _guard(self, _engine, _pixels, **_options):
        site = self

        class Guard:
            damage: str | None = None

            def look(self) -> None:
                self.damage = site.damage

        return Guard()

    def _load(self, _settings, _metrics, _watch):
        self.loads += 1
        self.may_load.wait(timeout=10)
        if self.load_error is not None:
            raise self.load_error
        return self.engine

    def _develop(self, engine):
        assert engine.alive
        if self.canary_error is not None:
            raise self.canary_error
        return wiring.canary.Developed(np.zeros((8, 8, 3), np.uint8), 0.5)


@pytest.fixture
def site(monkeypatch):
    site = Site(monkeypatch)
    yield site
    site.components.close()


def test_building_loads_nothing_and_starts_nothing(site):
    assert site.loads == 0
    assert site.components.ready() == Readiness(False, "loading")
    with pytest.raises(ModelLoading):
        site.components._resident.engine()


def test_starting_returns_at_once_and_the_service_is_alive_but_not_ready(site):
    site.components.start()
    assert site.components.ready() == Readiness(False, "loading")
    assert site.components.alive()
    assert site.components.info().model is None
    site.finish_loading()


def test_after_the_canary_the_service_is_ready_and_knows_its_model(site):
    site.load()
    assert site.components.ready() == Readiness(True, "ready")
    assert site.components._resident.engine() is site.engine
    info = site.components.info()
    assert (info.ready, info.model.name, info.model.width, info.model.dtype) == (True, "fake", 64, "float32")
    assert info.limits.max_queue_seconds == 7
    assert site.metric("ready") == 1
    assert site.metric("model_info", name="fake", fingerprint="f" * 64) == 1


def test_a_failed_load_shows_its_reason_and_asks_for_a_restart(site):
    site.load_error = ModelNotFound("base/unet/config.json is missing")
    site.load()
    assert site.components.ready() == Readiness(False, "failed: base/unet/config.json is missing")
    assert not site.components.alive()
    with pytest.raises(EngineStopped, match="could not start: base/unet/config"):
        site.components._resident.engine()


def test_a_load_that_fails_in_a_way_nobody_foresaw_shows_its_kind(site):
    site.load_error = ZeroDivisionError("with secrets in it")
    site.load()
    assert site.components.ready() == Readiness(False, "failed: ZeroDivisionError")
    assert not site.components.alive()


@pytest.mark.parametrize("error", [UnusableImage("black", seed=0), KeyError("a bug")])
def test_an_engine_that_cannot_make_its_canary_does_not_stay_running(site, error):
    site.canary_error = error
    site.load()
    assert not site.components.ready().ready
    assert not site.components.alive()
    assert site.engine.closed


def test_an_engine_that_dies_is_neither_ready_nor_alive(site):
    site.load()
    site.engine.alive = False
    assert site.components.ready() == Readiness(False, "failed: the engine has died")
    assert not site.components.alive()
    assert not site.components.info().ready
    with pytest.raises(EngineStopped):
        site.components._resident.engine()


def test_draining_is_not_ready_and_still_alive(site):
    site.load()
    site.components.drain()
    assert site.components.ready() == Readiness(False, "draining")
    assert site.components.alive()
    assert site.metric("ready") == 0


def test_closing_stops_the_engine(site):
    site.load()
    site.components.close()
    assert site.engine.closed


def test_closing_while_loading_stops_the_engine_once_it_has_come_up(site):
    site.components.start()
    site.components.close()
    site.finish_loading()
    assert site.engine.closed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "/nowhere"}, "'/nowhere' is neither a preset"),
        ({"device": "abacus"}, "'abacus', which is no torch device"),
    ],
)
def test_settings_that_name_what_is_not_there_fail_the_load_readably(settings, message):
    components = wiring.build(Settings(_env_file=None, **settings))
    components.start()
    components._resident._thread.join(timeout=10)
    assert message in components.ready().reason
    components.close()


def test_damaged_weights_end_readiness_at_the_next_look_and_no_picture_is_made(site):
    site.load()
    site.components.inspect()
    assert site.components.ready() == Readiness(True, "ready")
    site.damage = "2 tensors are not as they were loaded"
    site.components.inspect()
    assert site.components.ready().reason == "failed: damaged: 2 tensors are not as they were loaded"
    assert not site.components.alive()
    with pytest.raises(WeightsDamaged):
        site.components.engine()


def test_a_service_whose_faults_are_armed_does_not_start():
    faults.load("publish.after_blob=kill")
    try:
        with pytest.raises(InvalidSettings, match=faults.VARIABLE):
            wiring.build(Settings(_env_file=None))
    finally:
        faults.load("")
