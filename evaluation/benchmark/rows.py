"""What many rows do to the questions that the service asks its database."""

import hashlib
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from sqlalchemy import Engine, insert

from circles.detection import Detection, DetectorInfo
from circles.geometry import Circle
from circles.storage.database import Database, encode_cursor
from circles.storage.engine import open_migration_engine
from circles.storage.image_records import ImageRecord, image_row, object_records, object_rows
from circles.storage.schema import migrate
from circles.storage.tables import ImageRow, ObjectRow

_BATCH = 5000
_NEWEST = datetime(2026, 1, 1, tzinfo=UTC)
_PAGE = 50
_MAX_PENDING = 1000
_OBJECTS = 2


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Medians in ms, of one caller alone, at so many images with two objects each."""

    images: int
    find_ms: float
    """One image with its objects, by its id."""
    newest_page_ms: float
    """The 50 newest images."""
    old_page_ms: float
    """50 images from anywhere, by a cursor."""
    claim_ms: float
    """What the reconciler asks every few seconds: is anything pending?"""
    add_ms: float
    """A new image with its objects: a durable transaction."""
    delete_ms: float


def measure_rows(url: str, sizes: list[int], repeats: int, told: Callable[[int], None]) -> list[RowTimes]:
    """Fills an empty database step by step, and asks it at each size.

    Args:
        url: As ``DATABASE_URL``.
        sizes: Images, ascending.
        repeats: Of each question.
        told: Hears how many images there are.
    """
    migrate(url)
    engine = open_migration_engine(url)
    database = Database(url)
    try:
        times: list[RowTimes] = []
        filled = 0
        for size in sizes:
            while filled < size:
                batch = range(filled, min(filled + _BATCH, size))
                _fill(engine, batch)
                filled = batch.stop
                told(filled)
            times.append(_measure(database, size, repeats))
        return times
    finally:
        database.close()
        engine.dispose()


def _fill(engine: Engine, numbers: range) -> None:
    records = [_record(number) for number in numbers]
    with engine.begin() as connection:
        connection.execute(insert(ImageRow), [image_row(record) for record in records])
        connection.execute(insert(ObjectRow), [row for record in records for row in object_rows(record.objects)])


def _measure(database: Database, size: int, repeats: int) -> RowTimes:
    chance = random.Random(size)  # noqa: S311 - nothing secret
    cursors = _cursors(chance, size, repeats)
    # Numbers beyond all that were ever filled in, other ones at each size.
    new = [_record(2**40 + size * repeats + index) for index in range(repeats)]
    return RowTimes(
        images=size,
        find_ms=_median_ms(repeats, lambda _: database.find(_image_id(chance.randrange(size)))),
        newest_page_ms=_median_ms(repeats, lambda _: database.page(_PAGE, None, None, 0.5)),
        old_page_ms=_median_ms(repeats, lambda index: database.page(_PAGE, cursors[index], None, 0.5)),
        claim_ms=_median_ms(repeats, lambda _: database.claim_pending(10, 1.0)),
        add_ms=_median_ms(repeats, lambda index: database.add(new[index], _MAX_PENDING)),
        delete_ms=_median_ms(repeats, lambda index: database.delete(new[index].image_id)),
    )


def _cursors(chance: random.Random, size: int, count: int) -> list[str]:
    """Of so many pages, each behind any of the images."""
    return [encode_cursor(_record(chance.randrange(size))) for _ in range(count)]


def _median_ms(repeats: int, ask: Callable[[int], object]) -> float:
    times = []
    for index in range(repeats):
        began = time.perf_counter()
        ask(index)
        times.append(1000 * (time.perf_counter() - began))
    return median(times)


def _image_id(number: int) -> str:
    return hashlib.sha256(number.to_bytes(8)).hexdigest()


def _record(number: int) -> ImageRecord:
    """Ids are spread as those of real pictures are, so that every insertion meets another part of the indexes."""
    image_id = _image_id(number)
    circle = Circle(100.0, 80.0, 20.0)
    detections = [Detection(circle, circle.bbox(), score) for score in (0.9, 0.7)[:_OBJECTS]]
    return ImageRecord(
        image_id=image_id,
        storage_key=f"{image_id}/{uuid.UUID(int=number)}",
        filename="picture.jpg",
        media_type="image/jpeg",
        width=512,
        height=384,
        size_bytes=40_000,
        created_at=_NEWEST - timedelta(seconds=number % 2**30),
        status="done",
        error=None,
        detector=DetectorInfo("benchmark", "1"),
        objects=object_records(image_id, detections),
    )
