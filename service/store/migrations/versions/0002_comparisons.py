"""Comparisons with their cells, events and files."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("model", sa.String(80), nullable=False),
        sa.Column("pinned", sa.Text, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("verdicts", sa.Text),
        sa.Column("conclusion", sa.Text),
        sa.Column("warnings", sa.Text),
        sa.Column("problem", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fruitless", sa.Integer, nullable=False),
        sa.Column("furthest", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("next_event", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("finished_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        sa.UniqueConstraint("idempotency_key", name="uq_comparisons_idempotency_key"),
    )
    op.create_index("ix_comparisons_state", "comparisons", ["state"])
    op.create_index("ix_comparisons_created_ms_id", "comparisons", ["created_ms", "id"])
    op.create_table(
        "comparison_cells",
        sa.Column("comparison_id", sa.String(40), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("picture", sa.String(64)),
        sa.Column("picture_bytes", sa.BigInteger),
        sa.Column("thumbnail", sa.String(64)),
        sa.Column("measurements", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("comparison_id", "place", name="pk_comparison_cells"),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_comparison_cells_comparison_id"
        ),
    )
    op.create_table(
        "comparison_events",
        sa.Column("comparison_id", sa.String(40), nullable=False),
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("comparison_id", "id", name="pk_comparison_events"),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_comparison_events_comparison_id"
        ),
    )
    op.create_table(
        "comparison_files",
        sa.Column("comparison_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("media_type", sa.String(80), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("comparison_id", "name", name="pk_comparison_files"),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name="fk_comparison_files_comparison_id"
        ),
    )


def downgrade() -> None:
    for table in ("comparison_files", "comparison_events", "comparison_cells", "comparisons"):
        op.drop_table(table)
