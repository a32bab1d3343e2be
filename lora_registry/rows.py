"""Records to table rows and back. The summary of an inspection is kept as JSON, once for each blob."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, Select, select

from lora_registry.records import Alias, Inspection, LoraVersion, RankCount, Reason
from lora_registry.schema import aliases, blobs, loras, versions

AUTO_V2_DIGITS = 10
AUTO_V3_DIGITS = 12

VERSION_ROWS: Select[Any] = (
    select(
        versions.c.id,
        loras.c.name,
        versions.c.number,
        versions.c.digest,
        versions.c.words,
        versions.c.created_ms,
        blobs.c.size_bytes,
        blobs.c.data_sha256,
        blobs.c.summary,
    )
    .join_from(versions, loras, loras.c.id == versions.c.lora_id)
    .join(blobs, blobs.c.digest == versions.c.digest)
    .where(versions.c.deleted_ms.is_(None))
)
"""Of every live version, what `version_from` needs."""

ALIAS_ROWS: Select[Any] = (
    select(
        loras.c.name,
        aliases.c.alias,
        versions.c.number,
        versions.c.digest,
        aliases.c.revision,
        aliases.c.updated_ms,
    )
    .join_from(aliases, versions, versions.c.id == aliases.c.version_id)
    .join(loras, loras.c.id == aliases.c.lora_id)
    .order_by(aliases.c.alias)
)


def summary_text(found: Inspection) -> str:
    """What the catalogue keeps of an inspection: everything but the single modules."""
    ranks = Counter((m.component, _label(m.algorithm, m.is_dora), m.rank, m.alpha) for m in found.modules)
    has_locon = any(m.is_conv and m.algorithm == "lora" for m in found.modules)
    algorithms = {_label(m.algorithm, m.is_dora) for m in found.modules} | ({"locon"} if has_locon else set())
    summary = {
        "kind": found.kind,
        "format": found.format,
        "family": found.family,
        "components": found.components,
        "algorithms": sorted(algorithms),
        "ranks": [(*key, count) for key, count in sorted(ranks.items())],
        "tokens": sorted({embedding.token for embedding in found.embeddings if embedding.token}),
        "metadata": dict(found.metadata),
        "warnings": [asdict(reason) for reason in found.warnings],
    }
    return json.dumps(summary, ensure_ascii=False, separators=(",", ":"))


def words_text(
    triggers: tuple[str, ...], tags: tuple[str, ...], description: str, lineage: Mapping[str, Any]
) -> str:
    """What belongs to a version and not to its bytes."""
    words: dict[str, Any] = {"triggers": triggers, "tags": tags, "description": description}
    if lineage:
        words["lineage"] = lineage
    return json.dumps(words, ensure_ascii=False, separators=(",", ":"))


def version_from(row: Row[Any]) -> LoraVersion:
    """The version that a row of VERSION_ROWS tells of."""
    words, summary = json.loads(row.words), _summary(row.summary)
    return LoraVersion(
        name=row.name,
        number=row.number,
        digest=f"sha256:{row.digest}",
        size_bytes=row.size_bytes,
        auto_v2=row.digest[:AUTO_V2_DIGITS],
        auto_v3=row.data_sha256[:AUTO_V3_DIGITS],
        triggers=tuple(words["triggers"]),
        tags=tuple(words["tags"]),
        description=words["description"],
        created_at=moment(row.created_ms),
        lineage=words.get("lineage", {}),
        **{**summary, "metadata": dict(summary["metadata"])},
    )


def alias_from(row: Row[Any]) -> Alias:
    """The alias that a row of ALIAS_ROWS tells of."""
    return Alias(
        row.name, row.alias, row.number, f"sha256:{row.digest}", str(row.revision), moment(row.updated_ms)
    )


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@lru_cache(maxsize=1024)
def _summary(text: str) -> Mapping[str, Any]:
    """The fields of LoraVersion that the summary holds. Shared by many versions: not to be changed."""
    found = json.loads(text)
    return {
        "kind": found["kind"],
        "format": found["format"],
        "family": found["family"],
        "components": tuple(found["components"]),
        "algorithms": tuple(found["algorithms"]),
        "ranks": tuple(RankCount(*entry) for entry in found["ranks"]),
        "tokens": tuple(found["tokens"]),
        "metadata": found["metadata"],
        "warnings": tuple(
            Reason(r["code"], r["message"], tuple(r["keys"]), r["count"]) for r in found["warnings"]
        ),
    }


def _label(algorithm: str, is_dora: bool) -> str:
    return "dora" if is_dora and algorithm == "lora" else algorithm
