"""Alembic's entry: the connection is handed over by `tallystick_server.database`, there is no other way in."""

from __future__ import annotations

from alembic import context

from tallystick_server import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables.server.metadata)
with context.begin_transaction():
    context.run_migrations()
