"""What can go wrong, as types with facts. Every message is fit for a caller to read: no paths, no stack."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_registry.records import Reason


class RegistryError(Exception):
    """Base of everything that the registry raises on purpose."""


class InvalidName(RegistryError):
    """A LoRA's name or an alias that the registry does not take."""


class InvalidRef(RegistryError):
    """A reference that is none of `name`, `name@3`, `name:alias` and `sha256:…`."""


class InvalidCursor(RegistryError):
    """A cursor that this registry did not give out."""


class InvalidLabel(RegistryError):
    """A trigger word, tag or description that is too long, or not plain text."""


class InvalidLora(RegistryError):
    """A file that intake refused. `reasons` has every reason, for machines and for people."""

    def __init__(self, reasons: Sequence["Reason"]) -> None:
        super().__init__("; ".join(reason.message for reason in reasons))
        self.reasons = tuple(reasons)


class LoraTooLarge(RegistryError):
    """More bytes than one LoRA may have."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the file is larger than the {limit_bytes} bytes that one LoRA may have")
        self.limit_bytes = limit_bytes


class DigestMismatch(RegistryError):
    """The bytes that arrived are not the ones that the publisher announced."""

    def __init__(self, announced: str, received: str) -> None:
        super().__init__(f"the publisher announced {announced}, but {received} arrived; send the file again")
        self.announced, self.received = announced, received


class LoraNotFound(RegistryError):
    """No live version answers to that reference."""

    def __init__(self, ref: str, fact: str) -> None:
        super().__init__(f"LoRA '{ref}' was not found: {fact}")
        self.ref = ref


class VersionExists(RegistryError):
    """A version with that number, or those bytes under another number, is there already; it won."""

    def __init__(self, ref: str, digest: str, fact: str) -> None:
        super().__init__(f"LoRA version '{ref}' {fact}")
        self.ref, self.digest = ref, digest


class VersionInUse(RegistryError):
    """A version that an alias points to cannot be deleted."""

    def __init__(self, ref: str, aliases: Sequence[str]) -> None:
        names = ", ".join(f"'{alias}'" for alias in aliases)
        super().__init__(
            f"LoRA version '{ref}' is in use by the alias {names}; move or delete the alias first"
        )
        self.ref, self.aliases = ref, tuple(aliases)


class AliasConflict(RegistryError):
    """An alias is not where the caller last saw it. `etag` is its present one, empty where it is absent."""

    def __init__(self, ref: str, fact: str, etag: str) -> None:
        super().__init__(f"alias '{ref}' {fact}; look at it again and decide anew")
        self.ref, self.etag = ref, etag


class NotExportable(RegistryError):
    """A version that has no equal in the form asked for."""


class StorageError(RegistryError):
    """The store of bytes does not do what it should. Trying again later may help."""


class StorageFull(StorageError):
    """There is no room for the bytes; nothing was published."""

    def __init__(self) -> None:
        super().__init__("the registry's storage is full; nothing was published")


class StorageUnavailable(StorageError):
    """The store cannot be read or written at the moment."""


class BlobMissing(StorageError):
    """The catalogue names bytes that the store does not have."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the store has no {digest}; publish the file again, or restore it from a backup")
        self.digest = digest


class CatalogUnavailable(RegistryError):
    """The database does not answer, or its schema is not the one that this program knows."""


class CatalogFull(CatalogUnavailable):
    """The database has no room to write to, and nothing was changed. Somebody must make some; waiting does not help."""
