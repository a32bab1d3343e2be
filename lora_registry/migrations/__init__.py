"""The catalogue's schema through time."""

from typing import Final

from lora_registry.migrating import Migrations
from lora_registry.schema import metadata

MIGRATIONS: Final = Migrations(
    package=__name__,
    metadata=metadata,
    head="0001",
    version_table="alembic_version",
    lock=0x6C6F7261,
    owner="the registry's database",
)

HEAD: Final = MIGRATIONS.head
current = MIGRATIONS.current
bring_up_to_date = MIGRATIONS.bring_up_to_date
migrate = MIGRATIONS.migrate
configuration = MIGRATIONS.configuration
