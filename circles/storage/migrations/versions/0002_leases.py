"""Until when a pending image is somebody's: several services may finish what uploads left behind."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from circles.storage.migrations.steps import add_column, drop_column

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    add_column("images", sa.Column("lease_until", moment))


def downgrade() -> None:
    # Not by a copy of the table, as Alembic's batch mode has it for SQLite: dropping the old one would delete all
    # objects, whose rows hang on it.
    drop_column("images", "lease_until")
