"""Fixtures that several tiers share; the pocket model is loaded once a session."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A second thread gains nothing on tensors this small, and beside other work its waiting costs tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A registry whose folder nobody names is in the user's data folder, which is not for tests.
_data_home = tempfile.mkdtemp(prefix="darkroom-tests-")
os.environ["XDG_DATA_HOME"] = _data_home
atexit.register(shutil.rmtree, _data_home, ignore_errors=True)


@pytest.fixture(scope="session")
def models():
    """The pocket model, float32 on the CPU."""
    import torch

    from service.engine import models, presets

    return models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def engine(models) -> Iterator:
    """A running engine on the pocket model."""
    from service.engine import memory
    from service.engine.engine import Engine

    engine = Engine(models, memory.PROFILES["24"])
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def plain(models):
    """Plain diffusers over the same weights."""
    from builders import PlainDiffusers

    return PlainDiffusers(models)


@pytest.fixture
def own() -> Iterator:
    """An engine on a model of this test's own, to be spoiled."""
    import torch

    from service.engine import memory, models, presets
    from service.engine.engine import Engine

    loaded = models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
    engine = Engine(loaded, memory.PROFILES["24"])
    engine.start()
    yield engine
    engine.close()
