"""Datasets; train jobs with their events and artifacts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("picture_count", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("faults", sa.Text, nullable=False),
        sa.Column("synthesis", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("deleted_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("digest", name="pk_datasets"),
    )
    op.create_index("ix_datasets_created_ms_digest", "datasets", ["created_ms", "digest"])
    op.create_table(
        "train_jobs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("dataset", sa.String(71)),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("max_train_steps", sa.Integer, nullable=False),
        sa.Column("loss", sa.Float),
        sa.Column("learning_rate", sa.Float),
        sa.Column("steps_per_second", sa.Float),
        sa.Column("eta_seconds", sa.Float),
        sa.Column("lora", sa.String(80)),
        sa.Column("digest", sa.String(71)),
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
        sa.PrimaryKeyConstraint("id", name="pk_train_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_train_jobs_idempotency_key"),
    )
    op.create_index("ix_train_jobs_state", "train_jobs", ["state"])
    op.create_index("ix_train_jobs_created_ms_id", "train_jobs", ["created_ms", "id"])
    op.create_table(
        "train_job_events",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "id", name="pk_train_job_events"),
        sa.ForeignKeyConstraint(["job_id"], ["train_jobs.id"], name="fk_train_job_events_job_id"),
    )
    op.create_table(
        "train_job_artifacts",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("media_type", sa.String(80), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_train_job_artifacts"),
        sa.ForeignKeyConstraint(["job_id"], ["train_jobs.id"], name="fk_train_job_artifacts_job_id"),
    )


def downgrade() -> None:
    for table in ("train_job_artifacts", "train_job_events", "train_jobs", "datasets"):
        op.drop_table(table)
