"""The registry: bytes become versions, references become digests, digests become bytes. The only class others use.

It blocks on disks, databases and stores: call it from a thread. One object serves many threads; many processes may
share one catalogue and one blob store.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, Literal

from lora_registry import faults
from lora_registry.base_model import BaseModel
from lora_registry.blobs import Blobs, LocalBlobs
from lora_registry.catalog import Catalog, Publication
from lora_registry.database import Database
from lora_registry.disk_cache import CachedBlobs, DiskCache
from lora_registry.errors import (
    BlobMissing,
    DigestMismatch,
    InvalidLabel,
    InvalidLora,
    LoraNotFound,
    StorageUnavailable,
)
from lora_registry.export import Export, Form, original, renamed
from lora_registry.header import Header
from lora_registry.incoming import Incoming, abandoned, storage_errors
from lora_registry.index import Index, Search
from lora_registry.inspection import inspect, plan
from lora_registry.metadata import MAX_WORD_CHARACTERS, MAX_WORDS, clean_words
from lora_registry.records import Alias, Damage, GcReport, Inspection, Lora, LoraVersion, Page, VerifyReport
from lora_registry.refs import check_alias, check_name, check_number, is_name
from lora_registry.rows import AUTO_V3_DIGITS, summary_text

MAX_LORA_BYTES: Final = 2**30
MAX_DESCRIPTION_CHARACTERS: Final = 2000
MAX_LINEAGE_BYTES: Final = 2 << 20
GRACE_SECONDS: Final = 3600.0
"""How long a collection leaves alone what was just written or just deleted: a request that has resolved a digest
may still want its bytes."""
_PIECE_BYTES: Final = 2**20

Stream = BinaryIO | Iterable[bytes] | Incoming


class Registry:
    """LoRAs by name, for the models in `bases`: a file for any other is refused."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        bases: Sequence[BaseModel],
        *,
        max_lora_bytes: int = MAX_LORA_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not bases:
            raise ValueError("a registry needs at least one base model to check files against")
        self._database, self._blobs, self._bases = database, blobs, tuple(bases)
        self._origin = blobs.remote if isinstance(blobs, CachedBlobs) else blobs
        self._max_lora_bytes, self._clock = max_lora_bytes, clock
        self._catalog = Catalog(database, self._now_ms)
        self._index = Index(database)

    @classmethod
    def connect(
        cls,
        bases: Sequence[BaseModel],
        *,
        data: Path | None = None,
        database: str = "",
        blobs: str = "",
        cache_bytes: int = 0,
    ) -> "Registry":
        """The registry in the folder `data` (made where it is not there), or at a database and a store of blobs.

        `database` is `sqlite:///FILE` or `postgresql://…`; `blobs` a folder or `s3://bucket/prefix`. Each is by
        default in `data`. Files on their way in are kept in `data/incoming` where the blobs are not in a folder,
        and up to `cache_bytes` of those that were read in `data/cache`.

        Raises:
            CatalogUnavailable, StorageUnavailable
        """
        if data is None and not (database and blobs):
            raise ValueError("a registry needs a data folder, or a database and a store of blobs")
        if data is not None:
            with storage_errors():
                data.mkdir(parents=True, exist_ok=True)
        if "://" in blobs:
            from lora_registry.object_store import ObjectBlobs

            store: Blobs = ObjectBlobs.at(blobs, data and data / "incoming")
            if cache_bytes and data is not None:
                store = CachedBlobs(store, DiskCache(data / "cache", cache_bytes))
        else:
            store = LocalBlobs(Path(blobs) if blobs else _inside(data) / "blobs")
        return cls(Database(database or f"sqlite:///{_inside(data) / 'registry.sqlite3'}"), store, bases)

    def close(self) -> None:
        """Give the database's connections back."""
        self._database.close()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # In

    def receive(self) -> Incoming:
        """A file to write an upload into, piece by piece, before it is published; close it in any case."""
        return Incoming(self._blobs.staging, self._max_lora_bytes)

    def publish(
        self,
        name: str,
        stream: Stream,
        *,
        number: int = 0,
        alias: str | None = None,
        triggers: Iterable[str] = (),
        tags: Iterable[str] = (),
        description: str = "",
        digest: str = "",
        lineage: Mapping[str, Any] = MappingProxyType({}),
        permit: Callable[[], None] = lambda: None,
    ) -> LoraVersion:
        """The version that these bytes are from now on; what it returns survives a crash.

        The same bytes again under the same name are the version that they were (`existing`). `number` asks for one
        version number, 0 for the next; `alias` is moved to the version in the same transaction; `digest` is what
        the publisher believes to be sending. Trigger words and tags of the file are added to those given.
        `lineage` says where the bytes come from, as a JSON object of up to 2 MiB; the first publish of them counts.
        `permit` is called last in the transaction, when nobody else can publish under the name: what it raises, this
        raises, and nothing was published.

        Raises:
            InvalidName, InvalidRef, InvalidLabel: an argument cannot be.
            InvalidLora: intake refused the file; `reasons` says why.
            LoraTooLarge, DigestMismatch
            VersionExists: that number is taken; `digest` is the winner's.
            StorageFull, StorageUnavailable, CatalogUnavailable: nothing was published.
        """
        check_name(name)
        if number:
            check_number(number)
        if alias is not None:
            check_alias(alias)
        words, labels = _checked_words(triggers), _checked_words(tags)
        _check_description(description)
        _check_lineage(lineage)
        with stream if isinstance(stream, Incoming) else self.receive() as incoming:
            if not isinstance(stream, Incoming):
                _copy(stream, incoming)
            file = incoming.finish()
            if digest and digest != incoming.digest:
                raise DigestMismatch(digest, incoming.digest)
            found = self._inspect(file, incoming)
            self._blobs.put(incoming)
            with storage_errors():
                faults.point("publish.after_blob")
            wanted = Publication(
                name=name,
                number=number,
                digest=incoming.digest.removeprefix("sha256:"),
                data_sha256=incoming.data_sha256,
                size_bytes=incoming.size_bytes,
                summary=summary_text(found),
                triggers=clean_words((*words, *found.triggers)),
                tags=clean_words((*labels, *found.tags)),
                description=description,
                lineage=dict(lineage),
                aliases=(alias,) if alias else (),
            )

            def before_commit() -> None:
                self._ensure_stored(incoming)
                permit()

            return self._catalog.record(wanted, before_commit)

    def inspect(self, stream: Stream) -> Inspection:
        """What intake would say about a file; nothing is published.

        Raises:
            LoraTooLarge, StorageFull, StorageUnavailable
        """
        with stream if isinstance(stream, Incoming) else self.receive() as incoming:
            try:
                if not isinstance(stream, Incoming):
                    _copy(stream, incoming)
                return self._inspect(incoming.finish(), incoming, refuse=False)
            except InvalidLora as exc:
                return Inspection("refused", exc.reasons, (), "unknown", "unknown", "unknown")

    @property
    def bases(self) -> tuple[BaseModel, ...]:
        """The models that its LoRAs are for."""
        return self._bases

    # Names

    def resolve(self, ref: str) -> LoraVersion:
        """The version that `name`, `name@3`, `name:alias` or `sha256:…` means now.

        Raises:
            InvalidRef, LoraNotFound, CatalogUnavailable
        """
        return self._index.resolve(ref)

    def get(self, name: str) -> Lora:
        """A LoRA with its highest version and its aliases. Raises LoraNotFound."""
        return self._index.get(_known(name))

    def list(
        self,
        *,
        name: str = "",
        trigger: str = "",
        tag: str = "",
        hash: str = "",
        limit: int = 50,
        cursor: str = "",
    ) -> Page[Lora]:
        """LoRAs by name, up to 1000 at once; `cursor` is the `next_cursor` of the page before.

        `name`, `trigger` and `tag` are parts of what is searched for; `hash` is a sha256, AutoV2 or AutoV3, or at
        least the first 8 digits of one. Raises InvalidCursor.
        """
        return self._index.page(Search(name, trigger, tag, hash), limit, cursor)

    def versions(self, name: str, *, limit: int = 50, cursor: str = "") -> Page[LoraVersion]:
        """The versions of a LoRA, the highest first. Raises LoraNotFound, InvalidCursor."""
        return self._index.versions(_known(name), limit, cursor)

    def alias(self, name: str, alias: str) -> Alias:
        """Where an alias points, with the etag to move it. Raises LoraNotFound."""
        return self._index.alias(_known(name), _known(alias))

    def set_alias(self, name: str, alias: str, number: int, *, if_match: str | None = None) -> Alias:
        """Point an alias to a version. With `if_match` only if it has that etag, or, if that is "", if it is new.

        Raises:
            InvalidName: it is no alias, or `latest`, which follows the highest version by itself.
            LoraNotFound: there is no such live version.
            AliasConflict: the alias is not as expected.
        """
        return self._catalog.set_alias(_known(name), check_alias(alias), check_number(number), if_match)

    def delete_alias(self, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Take an alias away; its version stays. Raises InvalidName, LoraNotFound, AliasConflict."""
        self._catalog.delete_alias(_known(name), check_alias(alias), if_match)

    def delete(self, name: str, number: int) -> None:
        """Hide a version from now on; its bytes stay until a collection after the grace period.

        Raises:
            LoraNotFound
            VersionInUse: an alias other than `latest` points to it.
        """
        self._catalog.delete_version(_known(name), check_number(number))

    # Out

    def open(self, digest: str) -> BinaryIO:
        """The bytes of `sha256:…`, seekable; in a local store a real file that can be mapped into memory.

        Raises:
            BlobMissing, StorageUnavailable
        """
        return self._blobs.open(digest)

    def tier(self, digest: str) -> Literal["disk", "store"]:
        """Where `open` would find the bytes: on this machine's disk, or in a store elsewhere."""
        return "disk" if self._blobs.is_local(digest) else "store"

    def plan(self, digest: str) -> tuple[Header, Inspection]:
        """What an engine needs to load a published file: where its tensors are, which layer each module changes and
        by what scale. Reads the header and the alphas.

        Raises:
            BlobMissing, StorageUnavailable
            InvalidLora: the file is for a model that this registry does not serve (any more).
        """
        with self._blobs.open(digest) as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            header, found = plan(file, size_bytes, self._bases)
        if not found.accepted:
            raise InvalidLora(found.reasons)
        return header, found

    def export(self, ref: str, form: Form = "original") -> Export:
        """A published file as it was, or under the tensor names of `kohya` (A1111, ComfyUI) or `diffusers`.

        Raises:
            InvalidRef, LoraNotFound, BlobMissing, StorageUnavailable
            NotExportable: that form cannot say what the LoRA does.
        """
        version = self.resolve(ref)
        if form == "original":
            return original(self._blobs.open(version.digest), version.size_bytes)
        header, found = self.plan(version.digest)
        base = next(base for base in self._bases if base.name == found.family)
        file = self._blobs.open(version.digest)
        try:
            return renamed(file, header, found, base, version, form)
        except BaseException:
            file.close()
            raise

    # Housekeeping

    def gc(self, *, grace_seconds: float = GRACE_SECONDS) -> GcReport:
        """Remove blobs that no version needs and temporary files whose writers died, older than the grace period."""
        before = self._clock() - grace_seconds
        since_ms = int(before * 1000)
        needed = self._catalog.live_digests(since_ms)
        removed = size_bytes = temp_files = 0
        for blob in list(self._blobs.stored()):
            name = blob.digest.removeprefix("sha256:")
            if name in needed or blob.modified_seconds > before:
                continue
            with self._catalog.collecting(name, since_ms) as unneeded:
                if unneeded:
                    self._blobs.delete(blob.digest)
                    removed, size_bytes = removed + 1, size_bytes + blob.size_bytes
        with storage_errors():
            for path in abandoned(self._blobs.staging, grace_seconds):
                faults.point("gc.temp_file")
                path.unlink(missing_ok=True)
                temp_files += 1
        return GcReport(removed, size_bytes, temp_files)

    def verify(self) -> VerifyReport:
        """Hash every blob that a version names, in the store itself, and tell which are not what their name says."""
        damaged = []
        sizes = self._index.live_blobs()
        for name in sorted(sizes):
            digest = f"sha256:{name}"
            try:
                found = _hash(self._origin.open(digest))
            except BlobMissing:
                damaged.append(Damage(digest, "missing", self._index.refs_of(name)))
                continue
            if found != name:
                damaged.append(Damage(digest, "corrupt", self._index.refs_of(name)))
        return VerifyReport(len(sizes), sum(sizes.values()), tuple(damaged))

    def _inspect(self, file: BinaryIO, incoming: Incoming, *, refuse: bool = True) -> Inspection:
        with storage_errors():
            found = inspect(file, incoming.size_bytes, self._bases, incoming.data_sha256[:AUTO_V3_DIGITS])
        if refuse and not found.accepted:
            raise InvalidLora(found.reasons)
        return found

    def _ensure_stored(self, incoming: Incoming) -> None:
        """A collection may have taken an old blob of these bytes away before its row was locked."""
        if not self._blobs.has(incoming.digest, incoming.size_bytes):
            self._blobs.put(incoming)
        if not self._blobs.has(incoming.digest, incoming.size_bytes):
            raise StorageUnavailable("the store took the bytes and does not have them; nothing was published")

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _known(name: str) -> str:
    if not is_name(name):
        raise LoraNotFound(ascii(name[:100]), "nothing has such a name")
    return name


def _hash(file: BinaryIO) -> str:
    with storage_errors(), file:
        digest = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
        return digest.hexdigest()


def _copy(stream: BinaryIO | Iterable[bytes], incoming: Incoming) -> None:
    if hasattr(stream, "read"):
        while piece := stream.read(_PIECE_BYTES):
            incoming.write(piece)
    else:
        for piece in stream:
            incoming.write(piece)


def _checked_words(words: Iterable[str]) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(" ".join(word.split()) for word in words))
    if clean_words(given) != given:
        raise InvalidLabel(
            f"trigger words and tags are up to {MAX_WORDS}, of 1 to {MAX_WORD_CHARACTERS} characters without "
            "slashes and control characters"
        )
    return given


def _check_description(text: str) -> None:
    if len(text) > MAX_DESCRIPTION_CHARACTERS or not all(c.isprintable() or c in "\n\t" for c in text):
        raise InvalidLabel(
            f"a description is plain text of up to {MAX_DESCRIPTION_CHARACTERS} characters; this has {len(text)}"
        )


def _check_lineage(lineage: Mapping[str, Any]) -> None:
    try:
        size = len(json.dumps(dict(lineage), ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as exc:
        raise InvalidLabel(f"a lineage is a JSON object: {exc}") from exc
    if size > MAX_LINEAGE_BYTES:
        raise InvalidLabel(f"a lineage has up to {MAX_LINEAGE_BYTES} bytes as JSON; this has {size}")


def _inside(data: Path | None) -> Path:
    if data is None:
        raise ValueError("a registry needs a data folder, or a database and a store of blobs")
    return data
