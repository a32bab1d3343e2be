"""The use case of the registry: its blocking calls in threads, uploads and downloads in bounded memory."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from darkroom.types import Lora, LoraAlias, LoraInspection, LoraPage, LoraVersion, LoraVersionPage
from lora_registry import Form, Inspection, Registry
from lora_registry.errors import AliasConflict, InvalidLora, LoraNotFound
from lora_registry.refs import check_alias, check_name, check_number
from service import lora_records
from service.blocking import Receiving
from service.metrics import Metrics

ANY: Final = "*"
MAX_UPLOADS: Final = 8
"""At once. Each may hold a file of 1 GiB on the disk until it is in or given up."""


@dataclass(frozen=True)
class LoraFile:
    """A file to be sent. `pieces` is to be taken once; to close it lets go of the file."""

    version: LoraVersion
    form: Form
    size_bytes: int
    pieces: AsyncGenerator[bytes, None] = field(repr=False)

    @property
    def etag(self) -> str:
        """The digest of these bytes, or of those that they were made from."""
        return self.version.digest if self.form == "original" else f"{self.version.digest}-{self.form}"

    @property
    def file_name(self) -> str:
        form = "" if self.form == "original" else f".{self.form}"
        return f"{self.version.name}-{self.version.version}{form}.safetensors"


class Loras(Receiving[Registry]):
    """The registry for an event loop.

    Every method may raise CatalogUnavailable and StorageUnavailable, beside what it names.
    """

    def __init__(self, connect: Callable[[], Registry], metrics: Metrics) -> None:
        super().__init__(connect, name="lora-registry", max_uploads=MAX_UPLOADS)
        self._metrics = metrics

    def registry(self) -> Registry:
        """The connected registry, for those who are in a thread of their own. Blocks."""
        return self._connected()

    def close(self) -> None:
        """Give the database's connections back. What threads have begun, they finish."""
        super().close()
        if self._store is not None:
            self._store.close()

    # In

    async def publish(
        self,
        name: str,
        pieces: AsyncIterable[bytes],
        *,
        number: int = 0,
        alias: str | None = None,
        triggers: Sequence[str] = (),
        tags: Sequence[str] = (),
        description: str = "",
        digest: str = "",
    ) -> LoraVersion:
        """The version that these bytes are from now on, as `Registry.publish`. Whatever ends it early, an error of
        `pieces` or a cancellation, publishes nothing and leaves no file.

        Raises:
            InvalidName, InvalidRef, InvalidLabel, InvalidLora, LoraTooLarge, DigestMismatch, VersionExists
            StorageFull, TooManyUploads
        """
        check_name(name)  # before hundreds of megabytes are on their way
        if number:
            check_number(number)
        if alias is not None:
            check_alias(alias)
        try:
            async with self._received(pieces, Registry.receive) as (registry, incoming):
                record = await self._in_thread(
                    lambda: registry.publish(
                        name,
                        incoming,
                        number=number,
                        alias=alias,
                        triggers=triggers,
                        tags=tags,
                        description=description,
                        digest=digest,
                    )
                )
        except InvalidLora as refused:
            for code in {reason.code for reason in refused.reasons}:
                self._metrics.lora_refusals_total.labels(code).inc()
            raise
        return lora_records.version(record)

    async def inspect(self, pieces: AsyncIterable[bytes]) -> LoraInspection:
        """What intake says about a file; nothing is published. Raises LoraTooLarge, StorageFull, TooManyUploads."""
        try:
            async with self._received(pieces, Registry.receive) as (registry, incoming):
                found = await self._in_thread(lambda: registry.inspect(incoming))
        except InvalidLora as refused:  # by its first bytes
            found = Inspection("refused", refused.reasons, (), "unknown", "unknown", "unknown")
        return lora_records.inspection(found)

    # Names

    async def list(
        self,
        *,
        name: str = "",
        trigger: str = "",
        tag: str = "",
        hash: str = "",
        limit: int = 50,
        cursor: str = "",
    ) -> LoraPage:
        """LoRAs by name, as `Registry.list`. Raises InvalidCursor."""
        return lora_records.page(
            await self._asked(
                lambda registry: registry.list(
                    name=name, trigger=trigger, tag=tag, hash=hash, limit=limit, cursor=cursor
                )
            )
        )

    async def get(self, name: str) -> Lora:
        """A LoRA with its highest version and its aliases. Raises LoraNotFound."""
        return lora_records.lora(await self._asked(lambda registry: registry.get(name)))

    async def versions(self, name: str, *, limit: int = 50, cursor: str = "") -> LoraVersionPage:
        """The versions of a LoRA, the highest first. Raises LoraNotFound, InvalidCursor."""
        return lora_records.version_page(
            await self._asked(lambda registry: registry.versions(name, limit=limit, cursor=cursor))
        )

    async def version(self, name: str, number: int) -> LoraVersion:
        """One version. Raises InvalidRef, LoraNotFound."""
        return await self.resolve(f"{name}@{number}")

    async def resolve(self, ref: str) -> LoraVersion:
        """The version that a reference means now. Raises InvalidRef, LoraNotFound."""
        return lora_records.version(await self._asked(lambda registry: registry.resolve(ref)))

    async def alias(self, name: str, alias: str) -> LoraAlias:
        """Where an alias points. Raises LoraNotFound."""
        return lora_records.alias(await self._asked(lambda registry: registry.alias(name, alias)))

    async def set_alias(
        self, name: str, alias: str, number: int, *, if_match: str | None = None
    ) -> LoraAlias:
        """Point an alias to a version: with `if_match` only if it has that etag, with `*` if it is there, with ""
        if it is new.

        Raises:
            InvalidName, InvalidRef, LoraNotFound, AliasConflict
        """
        return lora_records.alias(
            await self._asked(
                lambda registry: registry.set_alias(
                    name, alias, number, if_match=_expected(registry, name, alias, if_match)
                )
            )
        )

    async def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Take an alias away; its version stays. Raises InvalidName, LoraNotFound, AliasConflict."""
        await self._asked(
            lambda registry: registry.delete_alias(
                name, alias, if_match=_expected(registry, name, alias, if_match)
            )
        )

    async def delete(self, name: str, number: int) -> None:
        """Hide a version from now on. Raises InvalidRef, LoraNotFound, VersionInUse."""
        await self._asked(lambda registry: registry.delete(name, number))

    # Out

    async def open(self, ref: str, form: Form = "original") -> LoraFile:
        """A published file to send. Raises InvalidRef, LoraNotFound, BlobMissing, NotExportable."""

        def work(registry: Registry) -> LoraFile:
            version = registry.resolve(ref)
            export = registry.export(version.ref, form)
            pieces = self._pieces(export.pieces)
            return LoraFile(lora_records.version(version), form, export.size_bytes, pieces)

        return await self._asked(work)


def _expected(registry: Registry, name: str, alias: str, if_match: str | None) -> str | None:
    """The etag that the registry is to find.

    Raises:
        AliasConflict: any would do, and there is none.
    """
    if if_match != ANY:
        return if_match
    try:
        return registry.alias(name, alias).etag
    except LoraNotFound as exc:
        raise AliasConflict(
            f"{name}:{alias}", "does not exist, which is not what the caller expected", ""
        ) from exc
