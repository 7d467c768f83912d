"""Runs the revisions on the connection that :mod:`..database` gives, inside its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
