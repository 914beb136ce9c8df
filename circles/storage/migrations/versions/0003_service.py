"""Which service the database is of."""

import uuid
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    any_script: dict[str, Any] = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
    op.create_table(
        "service", sa.Column("service_id", sa.String(36), primary_key=True), **any_script, if_not_exists=True
    )
    service = sa.table("service", sa.column("service_id", sa.String))
    if op.get_bind().scalar(sa.select(service.c.service_id)) is None:
        op.execute(service.insert().values(service_id=str(uuid.uuid4())))


def downgrade() -> None:
    """Nothing: with another id, after the way back up, the service would not know its own store again."""
