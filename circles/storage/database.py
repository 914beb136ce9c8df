"""Database: one row per image and per object, every promise kept by a transaction or a constraint."""

import json
import sqlite3
import threading
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import alembic.command
import alembic.config
import pysqlite3
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.errors import BacklogFullError, DatabaseUnavailableError, StorageFullError
from circles.geometry import BBox, Circle
from circles.storage.tables import ImageRow, ObjectRow

Status = Literal["pending", "done", "failed"]

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_S = 10.0
_POOL_SIZE = 32


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """A stored object: a detection with an id of its own."""

    object_id: str
    image_id: str
    detection: Detection


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A stored image. ``detector`` is None until one answered; ``objects`` come best score first."""

    image_id: str
    storage_key: str
    filename: str | None
    media_type: str
    width: int
    height: int
    size_bytes: int
    created_at: datetime
    status: Status
    error: str | None
    detector: DetectorInfo | None
    objects: tuple[ObjectRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class ImagePage:
    """Some images, newest first, without their objects but with how many there are; and where the next page begins."""

    items: list[tuple[ImageRecord, int]]
    next_cursor: str | None


def object_records(image_id: str, detections: Sequence[Detection]) -> tuple[ObjectRecord, ...]:
    """The detections as objects of this image, each with a new id."""
    return tuple(ObjectRecord(str(uuid.uuid4()), image_id, detection) for detection in detections)


class Database:
    """The service's rows. Calls block; each is one transaction, durable on return.

    Every method raises DatabaseUnavailableError when the database does not answer, and StorageFullError when it has
    no space left.
    """

    def __init__(self, url: str) -> None:
        """Opens the database and brings its tables to this version's form.

        Args:
            url: ``sqlite:///`` and a path; the folder is made if it is absent.
        """
        self._engine = _sqlite_engine(url)
        # SQLite has one writer at a time and lets the others poll, sleeping ever longer. In this process they queue
        # here instead: at the same throughput the 99th percentile of 32 clients' uploads fell from 1.3 to 0.4 s. What
        # is promised rests on transactions and constraints alone.
        self._write_turn = threading.Lock()
        with self._write() as connection:
            config = alembic.config.Config()
            config.set_main_option("script_location", str(_MIGRATIONS))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def check(self) -> None:
        """Takes and gives back the right to write, and reads."""
        with self._write() as connection:
            connection.execute(select(ImageRow.image_id).limit(1))

    def add(self, record: ImageRecord, max_pending: int) -> bool:
        """Adds an image with its objects.

        Returns:
            False when an image of this id is there already; nothing is changed then.

        Raises:
            BacklogFullError: The image is pending, and ``max_pending`` others are already.
        """
        with self._write() as connection:
            if record.status == "pending" and _count_pending(connection) >= max_pending:
                raise BacklogFullError(f"{max_pending} pictures are waiting for detection already")
            try:
                # Its own savepoint: only a row of this id, and nothing else that may be wrong, means "already there".
                with connection.begin_nested():
                    connection.execute(insert(ImageRow).values(_image_values(record)))
            except IntegrityError:
                if _has_image(connection, record.image_id):
                    return False
                raise
            _insert_objects(connection, record.objects)
        return True

    def find(self, image_id: str) -> ImageRecord | None:
        """The image with its objects."""
        with self._read() as connection:
            row = connection.execute(select(ImageRow.__table__).where(ImageRow.image_id == image_id)).one_or_none()
            if row is None:
                return None
            statement = select(ObjectRow.__table__).where(ObjectRow.image_id == image_id).order_by(ObjectRow.rank)
            return _image_record(row, tuple(_object_record(row) for row in connection.execute(statement)))

    def find_object(self, image_id: str, object_id: str) -> ObjectRecord | None:
        """One object of an image."""
        statement = select(ObjectRow.__table__).where(ObjectRow.image_id == image_id, ObjectRow.object_id == object_id)
        with self._read() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _object_record(row)

    def page(self, limit: int, cursor: str | None, status: Status | None, min_score: float) -> ImagePage:
        """Up to ``limit`` images, newest first, each with the number of its objects scoring at least ``min_score``.

        Raises:
            ValueError: The cursor is none of ours.
        """
        statement = select(ImageRow.__table__).order_by(ImageRow.created_at.desc(), ImageRow.image_id.desc())
        if status is not None:
            statement = statement.where(ImageRow.status == status)
        if cursor is not None:
            position = _decode_cursor(cursor)
            statement = statement.where(tuple_(ImageRow.created_at, ImageRow.image_id) < position)
        with self._read() as connection:
            rows = connection.execute(statement.limit(limit + 1)).all()
            has_more = len(rows) > limit
            records = [_image_record(row) for row in rows[:limit]]
            counting = (
                select(ObjectRow.image_id, func.count().label("object_count"))
                .where(ObjectRow.image_id.in_([record.image_id for record in records]), ObjectRow.score >= min_score)
                .group_by(ObjectRow.image_id)
            )
            counts = {row.image_id: row.object_count for row in connection.execute(counting)}
        next_cursor = _encode_cursor(records[-1]) if has_more else None
        return ImagePage([(record, counts.get(record.image_id, 0)) for record in records], next_cursor)

    def pending(self, limit: int, excluded_ids: Collection[str] = ()) -> list[ImageRecord]:
        """Up to ``limit`` images that wait for detection, oldest first."""
        statement = (
            select(ImageRow.__table__)
            .where(ImageRow.status == "pending", ImageRow.image_id.not_in(excluded_ids))
            .order_by(ImageRow.created_at, ImageRow.image_id)
            .limit(limit)
        )
        with self._read() as connection:
            return [_image_record(row) for row in connection.execute(statement)]

    def count_pending(self) -> int:
        """How many images wait for detection."""
        with self._read() as connection:
            return _count_pending(connection)

    def finish(self, image_id: str, storage_key: str, found: ImageDetections) -> bool:
        """Replaces what is known of an image's objects; they get new ids.

        Returns:
            False when this very upload is no longer there; nothing is changed then.
        """
        values: dict[str, object] = {
            "status": "done",
            "error": None,
            "detector_name": found.detector.name,
            "detector_version": found.detector.version,
        }
        with self._write() as connection:
            if not _update_image(connection, image_id, storage_key, values):
                return False
            connection.execute(delete(ObjectRow).where(ObjectRow.image_id == image_id))
            _insert_objects(connection, object_records(image_id, found.detections))
        return True

    def fail(self, image_id: str, storage_key: str, reason: str) -> bool:
        """Marks a pending image as one in which nothing can be detected.

        Returns:
            False when this very upload is no longer there, or no longer pending; nothing is changed then.
        """
        values: dict[str, object] = {"status": "failed", "error": reason[:1000]}
        with self._write() as connection:
            return _update_image(connection, image_id, storage_key, values, ImageRow.status == "pending")

    def delete(self, image_id: str) -> str | None:
        """Removes an image's rows; the storage key that no row names any more, None when there was no such image."""
        this_image = ImageRow.image_id == image_id
        with self._write() as connection:
            storage_key = connection.scalars(select(ImageRow.storage_key).where(this_image)).one_or_none()
            connection.execute(delete(ImageRow).where(this_image))
        return storage_key

    def named_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that a row names."""
        with self._read() as connection:
            return set(connection.scalars(select(ImageRow.storage_key).where(ImageRow.storage_key.in_(keys))))

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _errors_translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        # SQLite must be told before its first statement: a transaction that begins by reading and writes later fails
        # at once, without waiting its turn, when another one wrote in between.
        if not self._write_turn.acquire(timeout=_BUSY_TIMEOUT_S):
            raise DatabaseUnavailableError(f"the database let nobody write for {_BUSY_TIMEOUT_S:g} s")
        try:
            with (
                _errors_translated(),
                self._engine.connect() as connection,
                connection.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin(),
            ):
                yield connection
        finally:
            self._write_turn.release()


def _sqlite_engine(url: str) -> Engine:
    database = make_url(url).database
    assert database is not None, "Settings let no other URL through"
    Path(database).parent.mkdir(parents=True, exist_ok=True)
    # pysqlite3 carries its own SQLite: those from 3.7.0 to 3.51.2, the standard library's among them, can corrupt a
    # WAL database when two connections write or checkpoint at once (sqlite.org/wal.html#walresetbug).
    engine = create_engine(
        url,
        module=pysqlite3,
        pool_size=_POOL_SIZE,
        pool_timeout=_BUSY_TIMEOUT_S,
        connect_args={"timeout": _BUSY_TIMEOUT_S},
    )

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: sqlite3.Connection, _record: object) -> None:
        dbapi_connection.isolation_level = None  # transactions are begun below, not by the driver's guess
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if "disk is full" in str(error.orig):
            raise StorageFullError("the database has no space left") from error
        raise DatabaseUnavailableError(f"the database does not work: {error.orig}") from error
    except SQLAlchemyError as error:
        raise DatabaseUnavailableError(f"the database does not answer: {error}") from error


def _count_pending(connection: Connection) -> int:
    return connection.scalars(select(func.count()).where(ImageRow.status == "pending")).one()


def _has_image(connection: Connection, image_id: str) -> bool:
    return connection.scalar(select(ImageRow.image_id).where(ImageRow.image_id == image_id)) is not None


def _update_image(
    connection: Connection,
    image_id: str,
    storage_key: str,
    values: dict[str, object],
    *conditions: ColumnElement[bool],
) -> bool:
    this_upload = (ImageRow.image_id == image_id, ImageRow.storage_key == storage_key, *conditions)
    return connection.execute(update(ImageRow).where(*this_upload).values(values)).rowcount == 1


def _insert_objects(connection: Connection, objects: Sequence[ObjectRecord]) -> None:
    rows = [
        {
            "object_id": stored.object_id,
            "image_id": stored.image_id,
            "rank": rank,
            "label": stored.detection.label,
            "x_min": stored.detection.bbox.x_min,
            "y_min": stored.detection.bbox.y_min,
            "x_max": stored.detection.bbox.x_max,
            "y_max": stored.detection.bbox.y_max,
            "center_x": stored.detection.circle.center_x,
            "center_y": stored.detection.circle.center_y,
            "radius": stored.detection.circle.radius,
            "score": stored.detection.score,
        }
        for rank, stored in enumerate(objects)
    ]
    if rows:
        connection.execute(insert(ObjectRow), rows)


def _image_values(record: ImageRecord) -> dict[str, object]:
    return {
        "image_id": record.image_id,
        "storage_key": record.storage_key,
        "filename": record.filename,
        "media_type": record.media_type,
        "width": record.width,
        "height": record.height,
        "size_bytes": record.size_bytes,
        "created_at": record.created_at,
        "status": record.status,
        "error": record.error,
        "detector_name": record.detector.name if record.detector else None,
        "detector_version": record.detector.version if record.detector else None,
    }


def _image_record(row: Row[Any], objects: tuple[ObjectRecord, ...] = ()) -> ImageRecord:
    return ImageRecord(
        image_id=row.image_id,
        storage_key=row.storage_key,
        filename=row.filename,
        media_type=row.media_type,
        width=row.width,
        height=row.height,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        status=row.status,
        error=row.error,
        detector=DetectorInfo(row.detector_name, row.detector_version) if row.detector_name else None,
        objects=objects,
    )


def _object_record(row: Row[Any]) -> ObjectRecord:
    circle = Circle(row.center_x, row.center_y, row.radius)
    bbox = BBox(row.x_min, row.y_min, row.x_max, row.y_max)
    return ObjectRecord(row.object_id, row.image_id, Detection(circle, bbox, row.score, row.label))


def _encode_cursor(record: ImageRecord) -> str:
    return urlsafe_b64encode(json.dumps([record.created_at.isoformat(), record.image_id]).encode()).decode()


def _decode_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, image_id = json.loads(urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(created_at).astimezone(UTC), str(image_id)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("the cursor is none that this service gave out") from error
