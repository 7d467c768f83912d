"""What the files of an adapter's version are known by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column. Versions that are there have no digests; their next fine-tune brings some."""
    op.add_column("adapters", sa.Column("digests", sa.JSON))
