"""What is kept in a place, while tests fill it, look at it and run commands on it."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

from circles.storage import checking
from circles.storage.checking import Findings
from circles.storage.database import Database
from circles.storage.image_records import ImageRecord
from circles.storage.images import ImageStore, open_image_store
from circles.storage.records import RecordBook, image_id_of
from tests.records import HEADER, add, found
from tests.worlds import Place


def fill(book: RecordBook, count: int) -> list[ImageRecord]:
    """Images of every kind."""
    records = [
        add(book, f"bytes {number}".encode(), found(0.9, 0.5) if number % 3 else None)[0] for number in range(count)
    ]
    if records:
        book.fail(records[0], "too dark")
    return [book.get(record.image_id) for record in records]


def bytes_of(record: ImageRecord) -> bytes:
    """What ``fill`` made it of."""
    candidates = (f"bytes {number}".encode() for number in itertools.count())
    return next(candidate for candidate in candidates if image_id_of(candidate) == record.image_id)


def databases(*places: Place) -> list[Database]:
    return [place.open_database() for place in places]


def stores(*places: Place) -> list[ImageStore]:
    return [open_image_store(place.storage_url) for place in places]


def variables(place: Place) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": place.database_url, "STORAGE_URL": place.storage_url, "COLUMNS": "200"}


def run(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "circles.storage", *arguments]
    return subprocess.run(command, env=variables(place), capture_output=True, text=True, check=False, timeout=100)


def replace_bytes(store: ImageStore, record: ImageRecord, image_bytes: bytes) -> None:
    store.delete(record.storage_key)
    store.save(record.storage_key, image_bytes, HEADER.media_type)


def contents(place: Place) -> list[ImageRecord]:
    """All images, whose bytes are there, and no others'."""
    (database,), (store,) = databases(place), stores(place)
    records = list(database.walk())
    assert last(checking.check(database, store, -3600, reads_bytes=True)).is_well
    return records


def last(steps: Iterator[Findings]) -> Findings:
    """What a check has found when it has ended."""
    *_, findings = steps
    return findings
