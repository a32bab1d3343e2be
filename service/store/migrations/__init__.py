"""The schema of datasets, train jobs and comparisons through time."""

from typing import Final

from lora_registry.migrating import Migrations
from service.store.schema import metadata

MIGRATIONS: Final = Migrations(
    package=__name__,
    metadata=metadata,
    head="0002",
    # Not alembic's usual name: the registry may count in that one, in the same PostgreSQL database.
    version_table="work_version",
    lock=0x776F726B,
    owner="the database of datasets, train jobs and comparisons",
)
