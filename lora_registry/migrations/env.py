"""Run by alembic, with what the registry's `MIGRATIONS` give it."""

from lora_registry.migrating import run

run()
