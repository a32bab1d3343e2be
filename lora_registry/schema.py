"""The catalogue's tables. `migrations/` makes them; a test holds the two together."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
"""Of indexes and constraints, which migrations call by name."""
metadata: Final = MetaData(naming_convention=NAMING)

NAME: Final = String(64).with_variant(String(64, collation="C"), "postgresql")
"""Names sort by their bytes in either database, so that cursors mean the same."""

loras: Final = Table(
    "loras",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    # Numbers and etags are never given out twice, not even after a delete.
    Column("next_number", Integer, nullable=False),
    Column("alias_revision", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

blobs: Final = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("data_sha256", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("summary", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    # Set when the bytes were collected; the row stays as long as a deleted version names it.
    Column("removed_ms", BigInteger),
)

versions: Final = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("lora_id", ForeignKey("loras.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", ForeignKey("blobs.digest"), nullable=False, index=True),
    Column("words", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    UniqueConstraint("lora_id", "number"),
    # The same bytes are one version of a name, however many publish them at once.
    Index(
        "ix_versions_live_digest",
        "lora_id",
        "digest",
        unique=True,
        sqlite_where=text("deleted_ms IS NULL"),
        postgresql_where=text("deleted_ms IS NULL"),
    ),
)

labels: Final = Table(
    "labels",
    metadata,
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("kind", String(8), nullable=False),
    # Folding case makes up to three characters of one.
    Column("folded", String(300), nullable=False),
    PrimaryKeyConstraint("version_id", "kind", "folded"),
    Index("ix_labels_kind_folded", "kind", "folded"),
)

aliases: Final = Table(
    "aliases",
    metadata,
    Column("lora_id", ForeignKey("loras.id"), nullable=False),
    Column("alias", NAME, nullable=False),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("lora_id", "alias"),
)
