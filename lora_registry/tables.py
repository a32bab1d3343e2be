"""Records as lines of text for a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from lora_registry.records import Inspection, Lora, LoraVersion, Reason

DIGEST_SHOWN = 19
"""Characters: `sha256:` and twelve digits."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they must be; nothing for no rows."""
    body = [tuple(row) for row in rows]
    if not body:
        return
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    for row in (head, *body):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def lora_rows(found: Iterable[Lora]) -> Iterator[str]:
    """One line for each LoRA."""
    head = ("NAME", "LATEST", "VERSIONS", "KIND", "FAMILY", "SIZE", "PUBLISHED", "TRIGGERS")
    return table(
        head,
        (
            (
                lora.name,
                str(lora.latest.number),
                str(lora.versions),
                lora.latest.kind,
                lora.latest.family,
                size(lora.latest.size_bytes),
                moment(lora.latest.created_at),
                shortened(", ".join(lora.latest.triggers)),
            )
            for lora in found
        ),
    )


def version_rows(found: Iterable[LoraVersion]) -> Iterator[str]:
    """One line for each version."""
    head = ("VERSION", "DIGEST", "SIZE", "FORMAT", "COMPONENTS", "RANKS", "PUBLISHED")
    return table(
        head,
        (
            (
                version.ref,
                version.digest[:DIGEST_SHOWN],
                size(version.size_bytes),
                version.format,
                ", ".join(version.components),
                ", ".join(sorted({str(count.rank) for count in version.ranks}, key=int)) or "-",
                moment(version.created_at),
            )
            for version in found
        ),
    )


def version_lines(version: LoraVersion) -> Iterator[str]:
    """Everything about one version."""
    facts = {
        "version": version.ref,
        "digest": version.digest,
        "AutoV2, AutoV3": f"{version.auto_v2}, {version.auto_v3}",
        "size": f"{size(version.size_bytes)} ({version.size_bytes} bytes)",
        "published": moment(version.created_at),
        "kind": f"{version.kind}, {version.format}",
        "family": version.family,
        "components": ", ".join(version.components),
        "algorithms": ", ".join(version.algorithms),
        "triggers": ", ".join(version.triggers),
        "tags": ", ".join(version.tags),
        "tokens": ", ".join(version.tokens),
        "description": version.description,
        "made by": ", ".join(
            f"{name} {fact}" for name, fact in version.lineage.items() if isinstance(fact, str | int | float)
        ),
    }
    width = max(map(len, facts))
    yield from (f"{name.ljust(width)}  {fact}" for name, fact in facts.items() if fact)
    if version.ranks:
        yield ""
        head = ("COMPONENT", "ALGORITHM", "RANK", "ALPHA", "MODULES")
        yield from table(
            head,
            ((r.component, r.algorithm, str(r.rank), f"{r.alpha:g}", str(r.modules)) for r in version.ranks),
        )
    yield from reason_lines("warning", version.warnings)
    for key, value in version.metadata.items():
        yield f"{key} = {value}"


def inspection_lines(found: Inspection) -> Iterator[str]:
    """The verdict on a file."""
    yield f"{found.verdict.replace('_', ' ')}: {found.kind}, {found.format}, {found.family}"
    yield from reason_lines("refused", found.reasons)
    yield from reason_lines("warning", found.warnings)


def reason_lines(word: str, reasons: Iterable[Reason]) -> Iterator[str]:
    """Reasons with the first tensors that they are about."""
    for reason in reasons:
        yield f"{word}: {reason.message} [{reason.code}]"
        yield from (f"    {key}" for key in reason.keys[:5])
        if reason.count > 5:
            yield f"    … {reason.count} in all"


def size(size_bytes: int) -> str:
    """`11.6 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M")


def shortened(text: str, width: int = 40) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
