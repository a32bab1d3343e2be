"""Where adapters wait until they are needed: the store, the disk, the host's memory, the device.

A request's adapters are fetched into the host's memory when it is admitted, while it queues, and are held by it until
it ends; so nothing is read during denoising, and what is evicted meanwhile is not lost to it.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Generic, Literal, Protocol, TypeVar

import structlog
import torch

from darkroom.types import LoraTier
from lora_registry import Header, Inspection, faults
from lora_registry.disk_cache import DiskCache
from lora_registry.errors import BlobMissing, StorageError
from service.engine.loras import arranged_files, files
from service.engine.loras.arranged import Arranged, Layout, arrange
from service.engine.loras.files import Adapter
from service.engine.loras.sham import sham_of
from service.engine.orders import name_of_sham

HASHED_BYTES = 1 << 22

log = structlog.get_logger()

Held = TypeVar("Held", bound="_Sized")


class _Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


class Source(Protocol):
    """Where adapters come from; `lora_registry.Registry` is one."""

    def plan(self, digest: str) -> tuple[Header, Inspection]: ...

    def open(self, digest: str) -> BinaryIO: ...

    def tier(self, digest: str) -> Literal["disk", "store"]: ...


@dataclass(frozen=True)
class Fetched:
    """An adapter in the host's memory, and the tier that it was found in."""

    adapter: Arranged
    tier: LoraTier


@dataclass(frozen=True)
class Watch:
    """Who wants to hear what happens: seconds by tier, evictions by tier, bytes by tier."""

    activated: Callable[[LoraTier, float], None] = lambda _tier, _seconds: None
    evicted: Callable[[LoraTier], None] = lambda _tier: None
    resident: Callable[[LoraTier, int], None] = lambda _tier, _bytes: None


NOBODY = Watch()


class Shelf(Generic[Held]):
    """Things by digest up to a number of bytes, the least recently used out first; pinned ones stay. Not thread-safe.

    Pinned things count, and may fill more than the budget: whoever pins knows why.
    """

    def __init__(self, budget_bytes: int, evicted: Callable[[], None] = lambda: None) -> None:
        self._budget_bytes = budget_bytes
        self._evicted = evicted
        self._held: OrderedDict[str, Held] = OrderedDict()
        self.pinned: set[str] = set()
        self.size_bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def get(self, digest: str) -> Held | None:
        """The thing, which is now the most recently used."""
        if digest in self._held:
            self._held.move_to_end(digest)
        return self._held.get(digest)

    def put(self, digest: str, thing: Held) -> None:
        """Take it in, and others out until all fit. One that is larger than the budget is not kept."""
        if (old := self._held.pop(digest, None)) is not None:
            self.size_bytes -= old.size_bytes
        self._held[digest] = thing
        self.size_bytes += thing.size_bytes
        self.make_room()

    def clear(self) -> None:
        """Evict all, pinned ones too."""
        self._held.clear()
        self.size_bytes = 0

    def make_room(self) -> None:
        """Evict until the budget holds."""
        for digest in [digest for digest in self._held if digest not in self.pinned]:
            if self.size_bytes <= self._budget_bytes:
                return
            self.size_bytes -= self._held.pop(digest).size_bytes
            self._evicted()


class HostResidency:
    """Adapters in the host's memory, fetched once however many ask at the same time. Any thread may call it.

    Raises from `fetch` and `pin` what the registry raises: LoraNotFound, BlobMissing, StorageUnavailable, InvalidLora;
    and IncompatibleLora where the file does not fit the model of `layout`.
    """

    def __init__(
        self,
        source: Callable[[], Source],
        layout: Layout,
        *,
        dtype: torch.dtype,
        budget_bytes: int,
        pin_memory: bool = False,
        disk: DiskCache | None = None,
        watch: Watch = NOBODY,
    ) -> None:
        self._source, self._layout, self._dtype, self._pin_memory = source, layout, dtype, pin_memory
        self._disk, self._suffix = disk, arranged_files.suffix_for(layout, dtype)
        self._watch = watch
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="keep-lora")
        self._lock = threading.Lock()
        self._shelf: Shelf[Arranged] = Shelf(budget_bytes, lambda: watch.evicted("host"))
        self._coming: dict[str, Future[Fetched]] = {}

    def fetch(self, digest: str, *, sham: int | None = None) -> Fetched:
        """The adapter, read from the registry where it is not in memory; or its sham of that seed, made of it.

        A sham is held and evicted as an adapter of its own, and nowhere else than in memory; its tier is that of the
        adapter that it was made of.

        Raises:
            IncompatibleLora: it has no sham.
        """
        if sham is None:
            return self._once(digest, partial(self._read, digest))
        return self._once(name_of_sham(digest, sham), partial(self._make_sham, digest, sham))

    def pin(self, digest: str) -> Fetched:
        """Fetch it and never evict it."""
        fetched = self.fetch(digest)
        with self._lock:
            self._shelf.pinned.add(digest)
            self._shelf.put(digest, fetched.adapter)
            self._report()
        return fetched

    def unpin(self, digest: str) -> None:
        """Let it be evicted again; nothing happens where it was not pinned."""
        with self._lock:
            self._shelf.pinned.discard(digest)
            self._shelf.make_room()
            self._report()

    def is_pinned(self, digest: str) -> bool:
        with self._lock:
            return digest in self._shelf.pinned

    def close(self) -> None:
        """Write what is to be kept on the disk, and no more."""
        self._writing.shutdown()

    def _once(self, name: str, bring: Callable[[], Fetched]) -> Fetched:
        """What is held under that name, or else is brought, by the first who asks."""
        with self._lock:
            if (held := self._shelf.get(name)) is not None:
                return Fetched(held, "host")
            coming = self._coming.get(name)
            mine = coming is None
            if coming is None:
                coming = self._coming[name] = Future()
        if mine:
            self._bring(name, bring, coming)
        return coming.result()

    def _bring(self, name: str, bring: Callable[[], Fetched], coming: "Future[Fetched]") -> None:
        try:
            fetched = bring()
        except BaseException as exc:
            with self._lock:
                del self._coming[name]
            coming.set_exception(exc)
            return
        with self._lock:
            self._shelf.put(name, fetched.adapter)
            del self._coming[name]
            self._report()
        coming.set_result(fetched)

    def _make_sham(self, digest: str, seed: int) -> Fetched:
        found = self.fetch(digest)
        sham = sham_of(found.adapter, seed)
        return Fetched(sham.pinned() if self._pin_memory else sham, found.tier)

    def _read(self, digest: str) -> Fetched:
        started = time.perf_counter()
        faults.point("swap.read")
        tier: LoraTier = "disk"
        adapter = self._from_disk(digest)
        if adapter is None:
            source = self._source()
            tier = source.tier(digest)
            adapter = arrange(read_adapter(source, digest, dtype=self._dtype), self._layout)
        if self._pin_memory:
            adapter = adapter.pinned()
        self._watch.activated(tier, time.perf_counter() - started)
        if self._disk is not None and self._key(digest) not in self._disk:
            with suppress(RuntimeError):  # closed meanwhile; then it is made again the next time
                self._writing.submit(self._keep_on_disk, self._disk, adapter)
        return Fetched(adapter, tier)

    def _from_disk(self, digest: str) -> Arranged | None:
        """As it was arranged before, where it is on the disk and sound. One that is damaged goes, to be made again."""
        if self._disk is None:
            return None
        try:
            if (file := self._disk.open(self._key(digest))) is None:
                return None
            with file:
                found = arranged_files.read(file)
            if found is not None and found.digest == digest:
                return found
            self._disk.delete(self._key(digest))
        except (StorageError, OSError) as exc:
            log.warning("arranged LoRA could not be read from the disk", reason=str(exc))
        return None

    def _keep_on_disk(self, disk: DiskCache, adapter: Arranged) -> None:
        """For the next time, while nobody waits. A disk that is full or gone costs time, and nothing else."""
        try:
            disk.put(self._key(adapter.digest), lambda file: arranged_files.write(adapter, file))
        except StorageError as exc:
            log.warning("arranged LoRA was not kept on the disk", reason=str(exc))

    def _key(self, digest: str) -> str:
        return f"{digest.removeprefix('sha256:')}-{self._suffix}"

    def _report(self) -> None:
        self._watch.resident("host", self._shelf.size_bytes)


class DeviceResidency:
    """Adapters on the device, by digest. It belongs to the engine's thread; on the CPU the host's memory serves."""

    def __init__(self, device: torch.device, *, budget_bytes: int, watch: Watch = NOBODY) -> None:
        self._device, self._watch = device, watch
        self._shelf: Shelf[Arranged] = Shelf(budget_bytes, lambda: watch.evicted("device"))

    def __contains__(self, digest: str) -> bool:
        return digest in self._shelf

    def bring(self, adapter: Arranged) -> Arranged:
        """The adapter on the device.

        Raises:
            torch.OutOfMemoryError: there is no room for it.
        """
        if self._device.type == "cpu":
            return adapter
        held = self._shelf.get(adapter.digest)
        if held is None:
            started = time.perf_counter()
            faults.point("swap.move")
            held = adapter.to(self._device)
            self._shelf.put(adapter.digest, held)
            self._watch.activated("host", time.perf_counter() - started)
            self._watch.resident("device", self._shelf.size_bytes)
        return held

    def clear(self) -> None:
        """Let all of them go; the host's memory has them."""
        self._shelf.clear()
        self._watch.resident("device", 0)


def read_adapter(source: Source, digest: str, *, dtype: torch.dtype = torch.float32) -> Adapter:
    """An adapter from where it is kept, if its bytes are what the digest says.

    Raises:
        BlobMissing: they are others, or not there. What else the source raises. IncompatibleLora
    """
    header, found = source.plan(digest)
    with source.open(digest) as file:
        _check(file, digest)
        return files.read(digest, file, header, found, dtype=dtype)


def _check(file: BinaryIO, digest: str) -> None:
    """Leave the file at its beginning, if its bytes are what the digest says.

    Raises:
        BlobMissing: they are others; the bytes asked for are not there.
    """
    sha256 = hashlib.sha256()
    while piece := file.read(HASHED_BYTES):
        sha256.update(piece)
    if f"sha256:{sha256.hexdigest()}" != digest:
        raise BlobMissing(digest)
    file.seek(0)
