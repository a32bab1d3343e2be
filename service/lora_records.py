"""The registry's records as the wire has them. Pure."""

from collections.abc import Iterable
from dataclasses import asdict

from darkroom.types import (
    Lora,
    LoraAlias,
    LoraInspection,
    LoraLineage,
    LoraPage,
    LoraRankCount,
    LoraReason,
    LoraVersion,
    LoraVersionPage,
)
from lora_registry import records


def version(record: records.LoraVersion) -> LoraVersion:
    """A published file."""
    return LoraVersion(
        name=record.name,
        version=record.number,
        ref=record.ref,
        digest=record.digest,
        size_bytes=record.size_bytes,
        auto_v2=record.auto_v2,
        auto_v3=record.auto_v3,
        kind=record.kind,
        format=record.format,
        family=record.family,
        components=list(record.components),
        algorithms=list(record.algorithms),
        ranks=[LoraRankCount(**asdict(count)) for count in record.ranks],
        tokens=list(record.tokens),
        triggers=list(record.triggers),
        tags=list(record.tags),
        description=record.description,
        metadata=dict(record.metadata),
        warnings=reasons(record.warnings),
        created_at=record.created_at,
        existing=record.existing,
        lineage=LoraLineage.model_validate(record.lineage) if record.lineage else None,
    )


def alias(record: records.Alias) -> LoraAlias:
    """Where an alias points."""
    return LoraAlias(
        name=record.name,
        alias=record.alias,
        ref=record.ref,
        version=record.number,
        digest=record.digest,
        etag=record.etag,
        updated_at=record.updated_at,
    )


def lora(record: records.Lora) -> Lora:
    """A name with its highest version."""
    return Lora(
        name=record.name,
        latest=version(record.latest),
        version_count=record.versions,
        aliases=[alias(one) for one in record.aliases],
        created_at=record.created_at,
    )


def page(record: records.Page[records.Lora]) -> LoraPage:
    """Some LoRAs."""
    return LoraPage(items=[lora(one) for one in record.items], next_cursor=record.next_cursor)


def version_page(record: records.Page[records.LoraVersion]) -> LoraVersionPage:
    """Some versions."""
    return LoraVersionPage(items=[version(one) for one in record.items], next_cursor=record.next_cursor)


def inspection(record: records.Inspection) -> LoraInspection:
    """What intake says about a file; its single modules are left out."""
    return LoraInspection(
        verdict=record.verdict,
        reasons=reasons(record.reasons),
        warnings=reasons(record.warnings),
        kind=record.kind,
        format=record.format,
        family=record.family,
        components=list(record.components),
        modules=len(record.modules),
        triggers=list(record.triggers),
        tags=list(record.tags),
        metadata=dict(record.metadata),
    )


def reasons(found: Iterable[records.Reason]) -> list[LoraReason]:
    """Why a file was refused, or what to know about it."""
    return [
        LoraReason(code=one.code, message=one.message, keys=list(one.keys), count=one.count) for one in found
    ]
