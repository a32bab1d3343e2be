"""Which tier an adapter is in, who is evicted, and what is fetched once."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from lora_registry import Header, Inspection
from lora_registry.disk_cache import DiskCache
from lora_registry.errors import BlobMissing
from service.engine.loras import arranged_files, residency
from service.engine.loras.arranged import Arranged, Changes, Place, Run
from service.engine.loras.changes import Change
from service.engine.loras.residency import HostResidency, Shelf, Watch
from service.errors import IncompatibleLora

KILOBYTE = 1024


@dataclass
class Thing:
    size_bytes: int


def an_adapter(digest: str, size_bytes: int = KILOBYTE) -> Arranged:
    numbers = size_bytes // 8
    return Arranged(
        digest, {"unet": Changes((Run(0, 0, torch.ones(1, numbers, 1), torch.ones(1, 1, numbers)),), ())}, {}
    )


def digest_of(data: bytes) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Library:
    """A source of adapters of one kilobyte each, which notes what was read."""

    held: dict[str, bytes] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    gate: threading.Event | None = None

    def add(self, data: bytes) -> str:
        self.held[digest_of(data)] = data
        return digest_of(data)

    def tier(self, digest: str) -> str:
        return "disk"

    def plan(self, digest: str) -> tuple[Header, Inspection]:
        if self.gate:
            assert self.gate.wait(10)
        self.reads.append(digest)
        if digest not in self.held:
            raise BlobMissing(digest)
        return Header({}, {}, 0), Inspection("accepted", (), (), "lora", "bare-peft", "fake")

    def open(self, digest: str) -> io.BytesIO:
        return io.BytesIO(self.held[digest])


@pytest.fixture
def library(monkeypatch) -> Library:
    monkeypatch.setattr(residency.files, "read", lambda digest, *_args, **_options: digest)
    monkeypatch.setattr(residency, "arrange", lambda digest, _layout: an_adapter(digest))
    return Library()


def host(library: Library, kilobytes: int, **heard) -> HostResidency:
    return HostResidency(
        lambda: library, {}, dtype=torch.float32, budget_bytes=kilobytes * KILOBYTE, watch=Watch(**heard)
    )


def test_the_first_fetch_reads_and_the_second_does_not(library):
    digest = library.add(b"one")
    memory = host(library, 2)
    assert memory.fetch(digest).tier == "disk"
    assert memory.fetch(digest).tier == "host"
    assert library.reads == [digest]


def test_many_who_ask_at_once_wait_for_one_read(library):
    library.gate = threading.Event()
    digest = library.add(b"one")
    memory = host(library, 2)
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(memory.fetch, digest) for _ in range(8)]
        library.gate.set()
        assert len({id(future.result().adapter) for future in asked}) == 1
    assert library.reads == [digest]


def test_the_least_recently_used_goes_first_and_is_counted(library):
    evicted, held = [], []
    a, b, c = (library.add(data) for data in (b"a", b"b", b"c"))
    memory = host(library, 2, evicted=evicted.append, resident=lambda tier, size: held.append(size))
    for digest in (a, b, a, c):
        memory.fetch(digest)
    assert evicted == ["host"]
    assert held[-1] == 2 * KILOBYTE
    assert memory.fetch(a).tier == "host"
    assert memory.fetch(b).tier == "disk"


def test_a_pinned_one_stays_until_it_is_let_go(library):
    a, b, c = (library.add(data) for data in (b"a", b"b", b"c"))
    memory = host(library, 1)
    memory.pin(a)
    assert memory.is_pinned(a)
    for digest in (b, c):
        memory.fetch(digest)
    assert memory.fetch(a).tier == "host"
    memory.unpin(a)
    memory.fetch(b)
    assert memory.fetch(a).tier == "disk"


def test_one_that_is_larger_than_the_budget_is_served_and_not_kept(library):
    digest = library.add(b"a")
    memory = host(library, 0)
    assert memory.fetch(digest).adapter.digest == digest
    assert memory.fetch(digest).tier == "disk"


def test_bytes_that_are_not_what_their_digest_says_are_never_used(library):
    digest = library.add(b"one")
    library.held[digest] = b"another lora"
    memory = host(library, 2)
    with pytest.raises(BlobMissing):
        memory.fetch(digest)
    library.held[digest] = b"one"
    assert memory.fetch(digest).tier == "disk"


def test_a_read_that_failed_is_tried_again_by_the_next_one_who_asks(library):
    memory = host(library, 2)
    digest = digest_of(b"late")
    with pytest.raises(BlobMissing):
        memory.fetch(digest)
    library.add(b"late")
    assert memory.fetch(digest).tier == "disk"


def test_a_sham_is_made_once_of_the_adapter_and_held_beside_it(library):
    digest = library.add(b"one")
    memory = host(library, 2)
    made, again = memory.fetch(digest, sham=3), memory.fetch(digest, sham=3)
    assert (made.tier, again.tier) == ("disk", "host")
    assert again.adapter is made.adapter
    assert made.adapter.digest == f"{digest}+sham-3"
    real = memory.fetch(digest)
    assert (real.tier, real.adapter.digest) == ("host", digest)
    assert memory.fetch(digest, sham=4).adapter.digest == f"{digest}+sham-4"
    assert library.reads == [digest]


def test_many_who_ask_for_a_sham_at_once_wait_for_one_making(library):
    library.gate = threading.Event()
    digest = library.add(b"one")
    memory = host(library, 2)
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(memory.fetch, digest, sham=n % 2 or None) for n in range(8)]
        library.gate.set()
        found = [future.result().adapter for future in asked]
    assert len({id(adapter) for adapter in found}) == 2
    assert library.reads == [digest]


def test_a_sham_is_evicted_as_others_are_and_a_pin_holds_the_adapter_alone(library):
    digest = library.add(b"one")
    memory = host(library, 1)
    memory.pin(digest)
    first = memory.fetch(digest, sham=1)
    assert memory.fetch(digest).tier == "host"
    again = memory.fetch(digest, sham=1)
    assert again.adapter is not first.adapter
    for one, other in zip(first.adapter._tensors(), again.adapter._tensors(), strict=True):
        assert torch.equal(one, other)
    assert library.reads == [digest]


def test_a_sham_is_never_written_to_the_disk(library, tmp_path):
    digest = library.add(b"one")
    memory = HostResidency(
        lambda: library, {}, dtype=torch.float32, budget_bytes=KILOBYTE, disk=DiskCache(tmp_path, 1 << 20)
    )
    memory.fetch(digest, sham=1)
    memory.close()
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(digest.removeprefix("sha256:"))
    with kept.open("rb") as file:
        assert arranged_files.read(file).digest == digest


def test_a_sham_that_cannot_be_made_is_refused_each_time_and_the_adapter_serves_on(library, monkeypatch):
    dora = Change("lora", 1.0, {"up": torch.ones(4, 1), "down": torch.ones(1, 4), "magnitude": torch.ones(4)})
    monkeypatch.setattr(
        residency,
        "arrange",
        lambda digest, _layout: Arranged(digest, {"unet": Changes((), ((Place(0, 0), dora),))}, {}),
    )
    digest = library.add(b"one")
    memory = host(library, 2)
    for _ in range(2):
        with pytest.raises(IncompatibleLora, match="no sham"):
            memory.fetch(digest, sham=1)
    assert memory.fetch(digest).tier == "host"


def test_a_shelf_counts_what_replaces_another_once():
    shelf: Shelf[Thing] = Shelf(10)
    shelf.put("a", Thing(4))
    shelf.put("a", Thing(6))
    assert shelf.size_bytes == 6
    shelf.put("b", Thing(5))
    assert "a" not in shelf
    assert shelf.size_bytes == 5
