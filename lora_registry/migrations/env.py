"""Run by alembic, with the connection that `migrations.migrate` gives it."""

from alembic import context

from lora_registry.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
