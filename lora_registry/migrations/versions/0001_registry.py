"""LoRAs, their versions, blobs, labels and aliases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "loras",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("next_number", sa.Integer, nullable=False),
        sa.Column("alias_revision", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_loras"),
        sa.UniqueConstraint("name", name="uq_loras_name"),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("data_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("removed_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    op.create_index("ix_blobs_data_sha256", "blobs", ["data_sha256"])
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("lora_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("deleted_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.ForeignKeyConstraint(["lora_id"], ["loras.id"], name="fk_versions_lora_id"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_versions_digest"),
        sa.UniqueConstraint("lora_id", "number", name="uq_versions_lora_id_number"),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_index(
        "ix_versions_live_digest",
        "versions",
        ["lora_id", "digest"],
        unique=True,
        sqlite_where=sa.text("deleted_ms IS NULL"),
        postgresql_where=sa.text("deleted_ms IS NULL"),
    )
    op.create_table(
        "labels",
        sa.Column("version_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("folded", sa.String(300), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "kind", "folded", name="pk_labels"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_labels_version_id"),
    )
    op.create_index("ix_labels_kind_folded", "labels", ["kind", "folded"])
    op.create_table(
        "aliases",
        sa.Column("lora_id", sa.Integer, nullable=False),
        sa.Column("alias", _NAME, nullable=False),
        sa.Column("version_id", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("lora_id", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(["lora_id"], ["loras.id"], name="fk_aliases_lora_id"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_aliases_version_id"),
    )
    op.create_index("ix_aliases_version_id", "aliases", ["version_id"])


def downgrade() -> None:
    for table in ("aliases", "labels", "versions", "blobs", "loras"):
        op.drop_table(table)
