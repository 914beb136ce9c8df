"""Alembic's entry: runs the migrations on the connection that ``Database`` hands over, inside its transaction."""

from alembic import context

from circles.storage.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
