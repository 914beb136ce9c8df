"""The database's tables as SQLAlchemy sees them; how they come to be is told by ``migrations/``."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Double, ForeignKey, Index, Integer, String
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC; stored without the zone, which SQLite and MySQL do not keep."""

    impl = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")  # whole seconds otherwise
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


_ANY_SCRIPT = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}  # whatever the database's default is


class Base(DeclarativeBase):
    """Base of all tables."""


class ImageRow(Base):
    """One uploaded picture.

    ``storage_key`` is its attempt's own and never used twice: it also tells a picture that was deleted and uploaded
    again from what it was before.
    """

    __tablename__ = "images"
    __table_args__ = (
        Index("ix_images_created_at", "created_at", "image_id"),
        Index("ix_images_status", "status", "created_at", "image_id"),
        _ANY_SCRIPT,
    )

    image_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    storage_key: Mapped[str] = mapped_column(String(128), unique=True)
    filename: Mapped[str | None] = mapped_column(String(255))
    media_type: Mapped[str] = mapped_column(String(32))
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    status: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(String(1000))
    detector_name: Mapped[str | None] = mapped_column(String(64))
    detector_version: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    """While it is pending and this is to come, somebody is at work on it, or lets it rest."""


class ObjectRow(Base):
    """One found object; ``rank`` counts from 0, best score first."""

    __tablename__ = "objects"
    __table_args__ = (Index("ix_objects_image_id", "image_id", "rank"), _ANY_SCRIPT)

    object_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.image_id", ondelete="CASCADE"))
    rank: Mapped[int] = mapped_column(Integer)
    label: Mapped[str] = mapped_column(String(64))
    x_min: Mapped[float] = mapped_column(Double)
    y_min: Mapped[float] = mapped_column(Double)
    x_max: Mapped[float] = mapped_column(Double)
    y_max: Mapped[float] = mapped_column(Double)
    center_x: Mapped[float] = mapped_column(Double)
    center_y: Mapped[float] = mapped_column(Double)
    radius: Mapped[float] = mapped_column(Double)
    score: Mapped[float] = mapped_column(Double)


class ServiceRow(Base):
    """One row: which service this is. The store of its bytes has the same id, so that no other takes them for its."""

    __tablename__ = "service"
    __table_args__ = _ANY_SCRIPT

    service_id: Mapped[str] = mapped_column(String(36), primary_key=True)
