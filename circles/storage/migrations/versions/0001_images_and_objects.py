"""Tables of images and of the objects found in them."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from circles.storage.migrations.steps import create_index

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")  # whole seconds otherwise
    # Whatever the database's default is.
    any_script: dict[str, Any] = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
    op.create_table(
        "images",
        sa.Column("image_id", sa.String(64), primary_key=True),
        sa.Column("storage_key", sa.String(128), nullable=False, unique=True),
        sa.Column("filename", sa.String(255)),
        sa.Column("media_type", sa.String(32), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error", sa.String(1000)),
        sa.Column("detector_name", sa.String(64)),
        sa.Column("detector_version", sa.String(64)),
        **any_script,
        if_not_exists=True,
    )
    create_index("ix_images_created_at", "images", ["created_at", "image_id"])
    create_index("ix_images_status", "images", ["status", "created_at", "image_id"])
    op.create_table(
        "objects",
        sa.Column("object_id", sa.String(36), primary_key=True),
        sa.Column("image_id", sa.String(64), sa.ForeignKey("images.image_id", ondelete="CASCADE"), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        *(
            sa.Column(name, sa.Double, nullable=False)
            for name in ("x_min", "y_min", "x_max", "y_max", "center_x", "center_y", "radius", "score")
        ),
        **any_script,
        if_not_exists=True,
    )
    create_index("ix_objects_image_id", "objects", ["image_id", "rank"])


def downgrade() -> None:
    op.drop_table("objects", if_exists=True)
    op.drop_table("images", if_exists=True)
    op.drop_table("service", if_exists=True)  # which its own revision leaves
