"""Run by alembic, with what the store's `MIGRATIONS` give it."""

from lora_registry.migrating import run

run()
