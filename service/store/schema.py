"""The tables of datasets, train jobs and comparisons. `migrations/` makes them; a test holds the two together."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from lora_registry.schema import NAMING

metadata: Final = MetaData(naming_convention=NAMING)

datasets: Final = Table(
    "datasets",
    metadata,
    # Hex digits of the sha256 of the manifest, which is a blob of its own.
    Column("digest", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("picture_count", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # What an upload had to say, and how a synthesis was made: JSON, beside the contents and not part of them.
    Column("faults", Text, nullable=False),
    Column("synthesis", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Index("ix_datasets_created_ms_digest", "created_ms", "digest"),
)

jobs: Final = Table(
    "train_jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(64), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("stage", String(16), nullable=False),
    # A TrainRequest as JSON, its recipe filled in.
    Column("request", Text, nullable=False),
    Column("dataset", String(71)),
    Column("step", Integer, nullable=False),
    Column("max_train_steps", Integer, nullable=False),
    Column("loss", Float),
    Column("learning_rate", Float),
    Column("steps_per_second", Float),
    Column("eta_seconds", Float),
    Column("lora", String(80)),
    Column("digest", String(71)),
    Column("problem", Text),
    Column("attempts", Integer, nullable=False),
    # Attempts in a row whose process died before it was beyond the `furthest` step of all attempts before.
    Column("fruitless", Integer, nullable=False),
    Column("furthest", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    # The fencing token: counts up with every claim; a write that bears an older one is refused.
    Column("fence", Integer, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    # Who holds the lease: host, process id and its start, so that a restarted launcher can tell its own.
    Column("holder", String(200), nullable=False),
    Column("next_event", Integer, nullable=False),
    # Of the Idempotency-Key and the body that it came with.
    Column("idempotency_key", String(200), unique=True),
    Column("fingerprint", String(64)),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Index("ix_train_jobs_created_ms_id", "created_ms", "id"),
)

events: Final = Table(
    "train_job_events",
    metadata,
    Column("job_id", ForeignKey("train_jobs.id"), nullable=False),
    Column("id", Integer, nullable=False),
    Column("type", String(16), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    # A JobEvent as JSON, without what the other columns say.
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "id"),
)

artifacts: Final = Table(
    "train_job_artifacts",
    metadata,
    Column("job_id", ForeignKey("train_jobs.id"), nullable=False),
    Column("name", String(120), nullable=False),
    Column("media_type", String(80), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("step", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("job_id", "name"),
)

comparisons: Final = Table(
    "comparisons",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("stage", String(16), nullable=False),
    # CompareRequest, ComparePlan and a list of MetricInfos as JSON.
    Column("request", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    # Fingerprint of the weights that it was planned for: no others draw it.
    Column("model", String(80), nullable=False),
    # What its refs of LoRAs meant when it was made: JSON that only who draws it reads.
    Column("pinned", Text, nullable=False),
    # Cells, and those of them that are done or have failed.
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    # The outcome as JSON, the conclusion too: it holds names that callers gave.
    Column("verdicts", Text),
    Column("conclusion", Text),
    Column("warnings", Text),
    Column("problem", Text),
    Column("attempts", Integer, nullable=False),
    # Attempts in a row whose process died with no more cells `done` than there were when it began: `furthest`.
    Column("fruitless", Integer, nullable=False),
    Column("furthest", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    # As of train jobs.
    Column("fence", Integer, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("holder", String(200), nullable=False),
    Column("next_event", Integer, nullable=False),
    Column("idempotency_key", String(200), unique=True),
    Column("fingerprint", String(64)),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Index("ix_comparisons_created_ms_id", "created_ms", "id"),
)

cells: Final = Table(
    "comparison_cells",
    metadata,
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False),
    # Its index in the matrix.
    Column("place", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    # Digests of the PNG and of its thumbnail, once it is done.
    Column("picture", String(64)),
    Column("picture_bytes", BigInteger),
    Column("thumbnail", String(64)),
    Column("measurements", Text, nullable=False),
    # A CompareCell as JSON, without what the other columns say.
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("comparison_id", "place"),
)

comparison_events: Final = Table(
    "comparison_events",
    metadata,
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False),
    Column("id", Integer, nullable=False),
    Column("type", String(16), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    # A CompareEvent as JSON, without what the other columns say.
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("comparison_id", "id"),
)

comparison_files: Final = Table(
    "comparison_files",
    metadata,
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False),
    Column("name", String(120), nullable=False),
    Column("media_type", String(80), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("comparison_id", "name"),
)
