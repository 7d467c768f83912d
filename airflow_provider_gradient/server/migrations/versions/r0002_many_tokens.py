"""Several workspaces and tokens with names; which weights an adapter was tuned on; answers that age."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns. The one token there was is that of the server's start."""
    op.add_column("workspaces", sa.Column("name", sa.String, nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("id", sa.String, nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("name", sa.String, nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("origin", sa.String, nullable=False, server_default="start"))
    op.add_column("tokens", sa.Column("revoked_at", sa.String))
    op.execute("UPDATE tokens SET id = lower(hex(randomblob(4)))")
    op.add_column("adapters", sa.Column("base_fingerprint", sa.String))
    op.create_index("ix_answers_created_at", "answers", ["created_at"])
    op.create_index("ix_answers_adapter_id", "answers", ["adapter_id"])
