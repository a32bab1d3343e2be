"""What a request's LoRA refs mean, and their adapters in memory, off the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from darkroom.types import LoraServed, LoraTier, LoraUse
from lora_registry import LoraVersion, Registry
from lora_registry.errors import InvalidRef, LoraNotFound
from service.engine.engine import Engine
from service.engine.loras.arranged import Arranged
from service.engine.loras.residency import Fetched, HostResidency
from service.engine.orders import LoraOrder
from service.errors import UnknownLora

T = TypeVar("T")


class FetchedLoras:
    """The adapters of an order, by `LoraOrder.adapter`, and the tier that each was found in."""

    def __init__(self, found: Mapping[str, Fetched], engine: Engine) -> None:
        self.adapters: Mapping[str, Arranged] = {name: one.adapter for name, one in found.items()}
        self._tiers: dict[str, LoraTier] = {
            name: "device" if one.tier == "host" and engine.has_on_device(name) else one.tier
            for name, one in found.items()
        }

    def served(self, loras: Sequence[LoraOrder]) -> list[LoraServed]:
        """What to tell the caller."""
        return [
            LoraServed(ref=lora.ref, digest=lora.digest, tier=self._tiers[lora.adapter]) for lora in loras
        ]


class Adapters:
    """Refs to versions, versions to adapters. `registry` and `residency` may block; they are called in threads."""

    def __init__(
        self, registry: Callable[[], Registry], residency: Callable[[], HostResidency], threads: Executor
    ) -> None:
        self._registry, self._residency, self._threads = registry, residency, threads

    async def resolve(self, uses: Sequence[LoraUse]) -> tuple[LoraVersion, ...]:
        """The version that each ref means now; the work that follows keeps it, whatever the ref means later.

        Raises:
            UnknownLora: a ref means nothing, or cannot be read.
            CatalogUnavailable
        """
        if not uses:
            return ()
        return await self._in_thread(lambda: resolved(self._registry(), [use.ref for use in uses], "loras"))

    async def fetch(self, loras: Sequence[LoraOrder], engine: Engine) -> FetchedLoras:
        """Every adapter of an order in the host's memory, those that must be read side by side.

        Raises:
            BlobMissing, StorageUnavailable, InvalidLora: a file cannot be had (any more).
            IncompatibleLora: it does not fit the resident model, or has no sham.
        """
        wanted = {lora.adapter: lora for lora in loras}
        residency = self._residency()
        found = await asyncio.gather(
            *(
                self._in_thread(partial(residency.fetch, lora.digest, sham=lora.sham))
                for lora in wanted.values()
            )
        )
        return FetchedLoras(dict(zip(wanted, found, strict=True)), engine)

    async def pin(self, ref: str) -> LoraServed:
        """Bring a version into this replica's memory and keep it there.

        Raises:
            InvalidRef, LoraNotFound, BlobMissing, StorageUnavailable, IncompatibleLora, ModelLoading
        """
        residency = self._residency()

        def work() -> LoraServed:
            version = self._registry().resolve(ref)
            fetched = residency.pin(version.digest)
            return LoraServed(ref=version.ref, digest=version.digest, tier=fetched.tier)

        return await self._in_thread(work)

    async def unpin(self, ref: str) -> None:
        """Let a version go again. Raises InvalidRef, LoraNotFound, ModelLoading."""
        residency = self._residency()
        await self._in_thread(lambda: residency.unpin(self._registry().resolve(ref).digest))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def resolved(registry: Registry, refs: Sequence[str], field: str) -> tuple[LoraVersion, ...]:
    """The version that each ref of a request's list `field` means.

    Raises:
        UnknownLora: a ref means nothing, or cannot be read; it points at that ref.
    """
    versions = []
    for place, ref in enumerate(refs):
        try:
            versions.append(registry.resolve(ref))
        except (LoraNotFound, InvalidRef) as exc:
            raise UnknownLora(str(exc), pointer=f"/{field}/{place}/ref") from exc
    return tuple(versions)
