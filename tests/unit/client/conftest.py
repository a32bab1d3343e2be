import pytest

from darkroom.testing import FakeDarkroom


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("DARKROOM_URL", "DARKROOM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake():
    return FakeDarkroom()


@pytest.fixture
def client(fake):
    with fake.client() as client:
        yield client
