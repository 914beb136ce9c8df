"""Database: one row per image and per object, every promise kept by a transaction or a constraint."""

import json
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeVar

import stamina
from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from circles.detection import ImageDetections
from circles.errors import BacklogFullError, DatabaseUnavailableError
from circles.storage.engine import errors_translated, is_conflict, is_duplicate, is_read_only, is_sqlite, open_engine
from circles.storage.image_records import (
    Backlog,
    ImagePage,
    ImageRecord,
    ObjectRecord,
    Status,
    image_record,
    image_row,
    is_image_id,
    object_record,
    object_records,
    object_rows,
)
from circles.storage.schema import check_schema, check_soundness, migrate
from circles.storage.tables import ImageRow, ObjectRow, ServiceRow

T = TypeVar("T")

_CONFLICT_TRIES = 5
_KEY_BATCH = 500  # SQLite takes at most 250,000 parameters in one statement, PostgreSQL 65,535
# One that ends later than this was given before the clock was set back, and would keep its picture as long as that was.
_LONGEST_LEASE_S = 900.0

# Of every upload; building a statement takes as long as executing it.
_FIND_IMAGE = select(ImageRow.__table__).where(ImageRow.image_id == bindparam("image_id"))
_FIND_OBJECTS = select(ObjectRow.__table__).where(ObjectRow.image_id == bindparam("image_id")).order_by(ObjectRow.rank)


class _AlreadyThereError(Exception):
    """Ends a transaction that found a row of the same id."""


class Database:
    """The service's rows. Calls block; each is one transaction, durable on return.

    Every method raises DatabaseUnavailableError when the database does not answer, and StorageFullError when it has
    no space left. What is promised rests on transactions and constraints, so that any number of services may share a
    database that takes more than one.
    """

    def __init__(self, url: str, pool_size: int = 16, timeout_s: float = 10.0, *, migrates: bool = False) -> None:
        """Opens the database.

        Args:
            url: That of SQLite, PostgreSQL or MySQL; SQLite's folder is made if it is absent.
            pool_size: Most connections at once.
            timeout_s: To wait for a free connection, for the server, and for other transactions.
            migrates: Whether the tables are brought to this version's form first. For callers that are alone, as the
                holder of a SQLite folder's lock is.

        Raises:
            DatabaseSchemaError: The tables are not those of this version.
            DatabaseUnavailableError: It does not answer, or its file, which this caller is to migrate, is damaged.
        """
        self._engine = open_engine(url, pool_size, timeout_s)
        self._timeout_s = timeout_s
        # SQLite has one writer at a time and lets the others poll, sleeping ever longer. In this process they queue
        # here instead: at the same throughput the 99th percentile of 32 clients' uploads fell from 1.3 to 0.4 s.
        self._write_turn = threading.Lock() if is_sqlite(url) else None
        try:
            if migrates:
                if is_sqlite(url):
                    check_soundness(self._engine)
                migrate(url)
            check_schema(self._engine)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def check(self) -> None:
        """Tries to write, to no effect, and reads."""

        def work(connection: Connection) -> None:
            connection.execute(update(ImageRow).where(false()).values(error=None))
            connection.execute(select(ImageRow.image_id).limit(1))

        self._write(work)

    def add(self, record: ImageRecord, max_pending: int) -> bool:
        """Adds an image with its objects.

        Returns:
            False when an image of this id is there already; nothing is changed then.

        Raises:
            BacklogFullError: The image is pending, and ``max_pending`` others are already. Services that share a
                database may exceed it by as many as they add at the same instant.
        """

        def work(connection: Connection) -> None:
            if record.status == "pending" and _count_pending(connection) >= max_pending:
                raise BacklogFullError(f"{max_pending} pictures are waiting for detection already")
            try:
                connection.execute(insert(ImageRow), image_row(record))
            except IntegrityError as error:
                # Only a row like this one, and nothing else that may be wrong, means that it is there.
                if is_duplicate(error):
                    raise _AlreadyThereError from error
                raise
            _insert_objects(connection, record.objects)

        try:
            self._write(work)
        except _AlreadyThereError:
            return False
        return True

    def find(self, image_id: str) -> ImageRecord | None:
        """The image with its objects."""
        with self._read_at_once() as connection:
            row = connection.execute(_FIND_IMAGE, {"image_id": image_id}).one_or_none()
            if row is None:
                return None
            objects = connection.execute(_FIND_OBJECTS, {"image_id": image_id})
            return image_record(row, tuple(object_record(row) for row in objects))

    def find_object(self, image_id: str, object_id: str) -> ObjectRecord | None:
        """One object of an image."""
        statement = select(ObjectRow.__table__).where(ObjectRow.image_id == image_id, ObjectRow.object_id == object_id)
        with self._read() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else object_record(row)

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
        with self._read_at_once() as connection:
            rows = connection.execute(statement.limit(limit + 1)).all()
            has_more = len(rows) > limit
            records = [image_record(row) for row in rows[:limit]]
            counting = (
                select(ObjectRow.image_id, func.count().label("object_count"))
                .where(ObjectRow.image_id.in_([record.image_id for record in records]), ObjectRow.score >= min_score)
                .group_by(ObjectRow.image_id)
            )
            counts = {row.image_id: row.object_count for row in connection.execute(counting)}
        next_cursor = encode_cursor(records[-1]) if has_more else None
        return ImagePage([(record, counts.get(record.image_id, 0)) for record in records], next_cursor)

    def walk(self, batch: int = 200) -> Iterator[ImageRecord]:
        """All images with their objects, in the order of their ids; each batch as it is when it is read."""
        last = ""
        while True:
            statement = select(ImageRow.__table__).where(ImageRow.image_id > last).order_by(ImageRow.image_id)
            with self._read_at_once() as connection:
                rows = connection.execute(statement.limit(batch)).all()
                ids = [row.image_id for row in rows]
                finding = select(ObjectRow.__table__).where(ObjectRow.image_id.in_(ids)).order_by(ObjectRow.rank)
                objects: dict[str, list[ObjectRecord]] = {image_id: [] for image_id in ids}
                for row in connection.execute(finding):
                    objects[row.image_id].append(object_record(row))
            yield from (image_record(row, tuple(objects[row.image_id])) for row in rows)
            if not rows:
                return
            last = rows[-1].image_id

    def count(self) -> int:
        """How many images there are."""
        with self._read() as connection:
            return connection.scalars(select(func.count()).select_from(ImageRow)).one()

    def images_before(self, moment: datetime, limit: int) -> list[ImageRecord]:
        """Up to ``limit`` images that were uploaded before this moment, oldest first, without their objects."""
        statement = select(ImageRow.__table__).where(ImageRow.created_at < moment)
        with self._read() as connection:
            rows = connection.execute(statement.order_by(ImageRow.created_at).limit(limit))
            return [image_record(row) for row in rows]

    def service_id(self) -> str:
        """What tells this database from others; made with its tables, and carried over by copies."""
        with self._read() as connection:
            return connection.scalars(select(ServiceRow.service_id)).one()

    def adopt(self, service_id: str) -> bool:
        """Takes over the id of the database that this one is to be a copy of.

        Returns:
            False when this one has images, and another id; nothing is changed then.
        """

        def work(connection: Connection) -> bool:
            if connection.scalar(select(ImageRow.image_id).limit(1)) is not None:
                return connection.scalars(select(ServiceRow.service_id)).one() == service_id
            connection.execute(update(ServiceRow).values(service_id=service_id))
            return True

        return self._write(work)

    def backlog(self) -> Backlog:
        """What waits for detection."""
        statement = select(func.count(), func.min(ImageRow.created_at)).where(ImageRow.status == "pending")
        with self._read() as connection:
            count, oldest_at = connection.execute(statement).one()
        return Backlog(count, oldest_at)

    def claim_pending(self, limit: int, lease_s: float) -> list[ImageRecord]:
        """Up to ``limit`` images that wait for detection, oldest first; for this time nobody else is given them.

        Services that ask at the same instant get different ones.
        """
        now = datetime.now(UTC)
        until = now + timedelta(seconds=lease_s)
        latest = now + timedelta(seconds=max(2 * lease_s, _LONGEST_LEASE_S))
        is_free = or_(ImageRow.lease_until.is_(None), ImageRow.lease_until <= now, ImageRow.lease_until > latest)
        waiting = (ImageRow.status == "pending", is_free)
        oldest_first = (ImageRow.created_at, ImageRow.image_id)
        statement = select(ImageRow.__table__).where(*waiting).order_by(*oldest_first).limit(limit)

        def work(connection: Connection) -> list[ImageRecord]:
            rows = connection.execute(statement.with_for_update(skip_locked=True)).all()
            ids = [row.image_id for row in rows]
            connection.execute(update(ImageRow).where(ImageRow.image_id.in_(ids)).values(lease_until=until))
            return [replace(image_record(row), lease_until=until) for row in rows]

        return self._write(work) if self._has_pending(waiting) else []

    def _has_pending(self, waiting: Sequence[ColumnElement[bool]]) -> bool:
        """Whether it is worth a transaction that writes."""
        with self._read() as connection:
            return connection.scalar(select(ImageRow.image_id).where(*waiting).limit(1)) is not None

    def rest(self, records: Collection[ImageRecord], rest_s: float) -> None:
        """Lets claimed images be claimed again after this time, seven minutes at most, but for those whose lease is
        another's by now."""
        until = datetime.now(UTC) + timedelta(seconds=min(rest_s, _LONGEST_LEASE_S / 2))  # or it would count for none

        def work(connection: Connection) -> None:
            for record in records:
                connection.execute(update(ImageRow).where(*_is_this_upload(record)).values(lease_until=until))

        self._write(work)

    def end_leases(self) -> None:
        """Lets all pending images be claimed: for a service that is alone and has just begun."""
        leased = ImageRow.lease_until.is_not(None)
        self._write(lambda connection: connection.execute(update(ImageRow).where(leased).values(lease_until=None)))

    def finish(self, record: ImageRecord, found: ImageDetections) -> bool:
        """Replaces what is known of an image's objects; they get new ids.

        Returns:
            False when this very upload is no longer there, or was claimed and its lease is another's by now; nothing is
            changed then.
        """
        values: dict[str, object] = {
            "status": "done",
            "error": None,
            "detector_name": found.detector.name,
            "detector_version": found.detector.version,
        }

        def work(connection: Connection) -> bool:
            if not _update_image(connection, record, values):
                return False
            connection.execute(delete(ObjectRow).where(ObjectRow.image_id == record.image_id))
            _insert_objects(connection, object_records(record.image_id, found.detections))
            return True

        return self._write(work)

    def fail(self, record: ImageRecord, reason: str) -> bool:
        """Marks a pending image as one in which nothing can be detected.

        Returns:
            False when it is no longer pending, or as ``finish``; nothing is changed then.
        """
        values: dict[str, object] = {"status": "failed", "error": reason[:1000]}
        is_pending = ImageRow.status == "pending"
        return self._write(lambda connection: _update_image(connection, record, values, is_pending))

    def replace(self, earlier: ImageRecord, record: ImageRecord) -> None:
        """Puts an image in the place of an earlier one of the same id; changes nothing when that is no longer there."""

        def work(connection: Connection) -> None:
            if connection.execute(delete(ImageRow).where(*_is_this_upload(earlier))).rowcount == 1:
                connection.execute(insert(ImageRow), image_row(record))
                _insert_objects(connection, record.objects)

        self._write(work)

    def delete(self, image_id: str, storage_key: str | None = None) -> str | None:
        """Removes an image's rows.

        Args:
            storage_key: The upload that is meant, for those who decided on it earlier: the same bytes may have been
                deleted and uploaded again since. None means whichever is there.

        Returns:
            The storage key that no row names any more, None when there was no such image; nothing is changed then.
        """
        meant = [ImageRow.image_id == image_id]
        if storage_key is not None:
            meant.append(ImageRow.storage_key == storage_key)

        def work(connection: Connection) -> str | None:
            # Locked, so that it is this row which goes, and not another upload's that took its place meanwhile.
            found_key = connection.scalars(select(ImageRow.storage_key).where(*meant).with_for_update()).one_or_none()
            if found_key is not None:  # else one that came since would go without its file
                connection.execute(delete(ImageRow).where(*meant))
            return found_key

        return self._write(work)

    def unnamed_keys(self, keys: Iterable[str]) -> Iterator[str]:
        """Those of the storage keys that no row names; each is taken from ``keys`` before the rows are asked for it."""
        remaining = iter(keys)
        while batch := list(islice(remaining, _KEY_BATCH)):
            with self._read() as connection:
                naming = select(ImageRow.storage_key).where(ImageRow.storage_key.in_(batch))
                named = set(connection.scalars(naming))
            yield from (key for key in batch if key not in named)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with errors_translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _read_at_once(self) -> Iterator[Connection]:
        """For several statements that must see the same moment; SQLite's transactions always do."""
        options = {} if self._write_turn is not None else {"isolation_level": "REPEATABLE READ"}
        with errors_translated(), self._engine.connect().execution_options(**options) as connection:
            yield connection

    def _write(self, work: Callable[[Connection], T]) -> T:
        """Does the work in a transaction, and again where it lost against another one."""
        with errors_translated():
            for attempt in stamina.retry_context(
                on=is_conflict, attempts=_CONFLICT_TRIES, wait_initial=0.01, wait_max=0.2, wait_jitter=0.05
            ):
                with attempt, self._writing() as connection:
                    return work(connection)
        raise AssertionError("the last try either returns or raises")

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction. SQLite must be told before its first statement that it will write: one that begins by reading
        fails at once, without waiting its turn, when another one wrote in between."""
        turn = self._turn() if self._write_turn is not None else nullcontext()
        with turn, self._engine.connect() as connection:
            try:
                with connection.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin():
                    yield connection
            except DBAPIError as error:
                if is_read_only(error):  # a standby that was the primary: the pool must look for the new one
                    connection.invalidate()
                raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        assert self._write_turn is not None
        if not self._write_turn.acquire(timeout=self._timeout_s):
            raise DatabaseUnavailableError(f"the database let nobody write for {self._timeout_s:g} s")
        try:
            yield
        finally:
            self._write_turn.release()


def _count_pending(connection: Connection) -> int:
    return connection.scalars(select(func.count()).where(ImageRow.status == "pending")).one()


def _update_image(
    connection: Connection, record: ImageRecord, values: dict[str, object], *conditions: ColumnElement[bool]
) -> bool:
    statement = update(ImageRow).where(*_is_this_upload(record), *conditions).values(values)
    return connection.execute(statement).rowcount == 1


def _is_this_upload(record: ImageRecord) -> tuple[ColumnElement[bool], ...]:
    """And, of a claimed one, that it is still this claimer's: who was slow must not undo what another one did."""
    same = (ImageRow.image_id == record.image_id, ImageRow.storage_key == record.storage_key)
    if record.lease_until is None:
        return same
    return (*same, ImageRow.status == "pending", ImageRow.lease_until == record.lease_until)


def _insert_objects(connection: Connection, objects: Sequence[ObjectRecord]) -> None:
    if objects:
        connection.execute(insert(ObjectRow), object_rows(objects))


def encode_cursor(record: ImageRecord) -> str:
    """Where the page after this image begins, as ``Database.page`` takes it."""
    return urlsafe_b64encode(json.dumps([record.created_at.isoformat(), record.image_id]).encode()).decode()


def _decode_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, image_id = json.loads(urlsafe_b64decode(cursor.encode()))
        if not is_image_id(image_id):
            raise ValueError(f"{image_id!r} is no image id")
        return datetime.fromisoformat(created_at).astimezone(UTC), image_id
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("the cursor is none that this service gave out") from error
