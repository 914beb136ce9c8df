"""Files and rows as one promise, on every combination of database and store."""

import logging
import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url

from circles.errors import (
    BacklogFullError,
    DatabaseSchemaError,
    DatabaseUnavailableError,
    NotFoundError,
    StorageMismatchError,
    StorageUnavailableError,
)
from circles.storage.database import Database
from circles.storage.folder import FolderStore
from circles.storage.image_records import ImageRecord
from circles.storage.images import open_image_store
from circles.storage.records import RecordBook, image_id_of
from tests.circles.kept import bytes_of, contents, fill
from tests.records import HEADER, add, found
from tests.running import wait_until
from tests.worlds import NAMES, Place, World


def test_image_comes_back_whole_after_reopening(place: Place, book: RecordBook) -> None:
    record, is_new = add(book, b"bytes", found(0.9, 0.5))
    assert is_new
    again = place.open_book()
    assert again.get(record.image_id) == record
    assert again.load(record) == b"bytes"
    assert [stored.detection.score for stored in record.objects] == [0.9, 0.5]
    stored = record.objects[1]
    assert again.get_object(record.image_id, stored.object_id) == stored


def test_unknown_ids(book: RecordBook) -> None:
    assert book.find("nope") is None
    for call in (lambda: book.get("nope"), lambda: book.get_object("nope", "x"), lambda: book.delete("nope")):
        with pytest.raises(NotFoundError, match="nope"):
            call()


def test_second_attempt_at_the_same_bytes_gives_way(place: Place, book: RecordBook) -> None:
    first, _ = add(book, b"bytes", found(0.9))
    second, is_new = add(book, b"bytes", found(0.8, 0.7))
    assert (second, is_new) == (first, False)
    assert place.stored_keys() == {first.storage_key}


def test_retry_sweep_and_delete_at_once_take_nothing_that_was_acknowledged(place: Place, book: RecordBook) -> None:
    """Many uploads of few pictures, deletions and sweeps without any grace, all at the same time.

    Whoever asks for an image finds its bytes or no image, at every instant; and in the end files and rows agree.
    """
    pictures = [bytes([number]) * 100 for number in range(3)]
    stop = threading.Event()

    def uploads(seed: int) -> int:
        rng = random.Random(seed)
        made = 0
        for _ in range(60):
            image_bytes = rng.choice(pictures)
            record, is_new = add(book, image_bytes, found(0.9) if rng.random() < 0.5 else None)
            made += is_new
            current = book.find(record.image_id)
            try:
                if current is not None:
                    assert book.load(current) == image_bytes
            except NotFoundError:
                # Deleted between the two looks; the row must be gone or another upload's by now.
                later = book.find(record.image_id)
                assert current is not None
                assert later is None or later.storage_key != current.storage_key
        return made

    def deletions() -> int:
        rng = random.Random(99)
        count = 0
        while not stop.is_set():
            try:
                book.delete(image_id_of(rng.choice(pictures)))
                count += 1
            except NotFoundError:
                continue
        return count

    def sweeps() -> None:
        while not stop.is_set():
            book.sweep(grace_s=0)

    with ThreadPoolExecutor(8) as pool:
        deleting, sweeping = pool.submit(deletions), pool.submit(sweeps)
        try:
            made = sum(pool.map(uploads, range(5)))
        finally:
            stop.set()
        deleted = deleting.result()
        sweeping.result()
    assert deleted > 0
    assert made > len(pictures)
    remaining = {record.storage_key for record, _ in book.page(200, None, None, 0).items}
    assert len(remaining) == made - deleted
    assert place.stored_keys() == remaining


def test_page_walks_through_all_with_counts(book: RecordBook) -> None:
    ids = [add(book, bytes([number]), found(0.9, 0.4))[0].image_id for number in range(5)]
    seen = []
    cursor = None
    while True:
        page = book.page(2, cursor, None, min_score=0.5)
        seen += [record.image_id for record, count in page.items if count == 1]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]
    with pytest.raises(ValueError, match="cursor"):
        book.page(2, "nonsense", None, 0)


def test_delete_removes_rows_and_bytes(place: Place, book: RecordBook) -> None:
    record, _ = add(book, b"bytes", found(0.9))
    book.delete(record.image_id)
    assert place.stored_keys() == set()
    assert book.find(record.image_id) is None
    with pytest.raises(NotFoundError):
        book.load(record)
    with pytest.raises(NotFoundError):
        book.get_object(record.image_id, record.objects[0].object_id)


def test_bytes_come_back_in_pieces(book: RecordBook) -> None:
    image_bytes = bytes(range(256)) * 4096 * 12  # 12 MiB: written in parts, where a store has them
    record, _ = add(book, image_bytes, found(0.9))
    pieces = list(book.stream(record))
    assert len(pieces) > 1
    assert b"".join(pieces) == image_bytes
    book.delete(record.image_id)
    with pytest.raises(NotFoundError):
        book.stream(record)


def test_damaged_bytes_are_not_given_out(place: Place, book: RecordBook) -> None:
    record, _ = add(book, b"bytes")
    book._images.delete(record.storage_key)
    book._images.save(record.storage_key, b"other bytes", HEADER.media_type)
    with pytest.raises(StorageUnavailableError, match="damaged"):
        book.load(record)


def test_sweep_removes_only_old_bytes_that_no_row_names(place: Place, book: RecordBook) -> None:
    named, _ = add(book, b"named", found(0.9))
    staged = book.stage(image_id_of(b"staged"), b"staged", "image/png")
    orphan = place.open_book().stage(image_id_of(b"orphan"), b"orphan", "image/png")
    assert book.sweep(grace_s=3600) == 0
    assert place.stored_keys() == {named.storage_key, staged, orphan}
    assert book.sweep(grace_s=-3600) == 1
    assert place.stored_keys() == {named.storage_key, staged}


def test_keys_are_looked_up_however_many_they_are(book: RecordBook) -> None:
    """More than any database takes parameters in a statement."""
    named, _ = add(book, b"named", found(0.9))
    others = [f"{number:02x}" for number in range(300_000)]
    assert list(book._database.unnamed_keys([*others, named.storage_key])) == others


class StuckStore(FolderStore):
    """Removes nothing."""

    def delete(self, key: str) -> None:
        raise StorageUnavailableError(f"{key} is stuck")


def test_file_that_cannot_be_removed_hides_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of what gets no row: the reason is told to the client, the file left to a sweep."""
    database = Database(f"sqlite:///{tmp_path}/db.sqlite3", migrates=True)
    book = RecordBook(StuckStore(tmp_path / "images"), database, max_pending=1)
    first, _ = add(book, b"bytes")
    with caplog.at_level(logging.WARNING, "circles.storage.records"):
        with pytest.raises(BacklogFullError):
            add(book, b"one too many")
        assert add(book, b"bytes", found(0.9)) == (first, False)
        key = book.stage(image_id_of(b"broken"), b"broken", HEADER.media_type)
        book.discard(key)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert told[-1] == f"{key}, which gets no row, stays until a sweep: {key} is stuck"
    working = RecordBook(FolderStore(tmp_path / "images"), database, max_pending=1)
    assert working.sweep(grace_s=0) == 3
    assert working.load(first) == b"bytes"
    working.close()


def test_moments_keep_their_microseconds(book: RecordBook) -> None:
    """On which the order of pages rests."""
    records = [add(book, bytes([number]), found(0.9))[0] for number in range(20)]
    assert [book.get(record.image_id).created_at for record in records] == [record.created_at for record in records]


def test_names_and_texts_of_any_script_come_back(book: RecordBook) -> None:
    image_id = image_id_of(b"bytes")
    key = book.stage(image_id, b"bytes", HEADER.media_type)
    record, _ = book.commit(image_id, key, HEADER, 5, "münze 硬币 🪙.png", None)
    assert book.get(record.image_id).filename == "münze 硬币 🪙.png"


def test_upload_that_took_too_long_gets_no_row(place: Place) -> None:
    """Its bytes may be swept away by another replica at any moment."""
    impatient = RecordBook(open_image_store(place.storage_url), place.open_database(), 10, max_staging_s=0)
    image_id = image_id_of(b"bytes")
    key = impatient.stage(image_id, b"bytes", HEADER.media_type)
    with pytest.raises(StorageUnavailableError, match="took too long"):
        impatient.commit(image_id, key, HEADER, 5, None, found(0.9))
    assert place.open_book().find(image_id) is None
    assert place.stored_keys() == set()


def test_store_of_another_database_is_refused(world: World, place: Place, book: RecordBook, tmp_path: Path) -> None:
    """It would take the other's pictures for files that no row names."""
    record, _ = add(book, b"bytes", found(0.9))
    other = world.new_place(tmp_path / "other")
    with pytest.raises(StorageMismatchError, match="do not belong together"):
        RecordBook(open_image_store(place.storage_url), other.open_database(), 10)
    other.close()
    assert book.load(record) == b"bytes"


@pytest.mark.parametrize("asked", ["nope", "a\0b", "", "A" * 64, "g" * 64, "'; DROP TABLE images; --"])
def test_ids_that_no_image_can_have(book: RecordBook, asked: str) -> None:
    for call in (lambda: book.get(asked), lambda: book.get_object(asked, asked), lambda: book.delete(asked)):
        with pytest.raises(NotFoundError):
            call()


def _add_once(place: Place, barrier: "multiprocessing.synchronize.Barrier") -> bool:
    book = place.open_book()
    barrier.wait()
    is_new = add(book, b"the same bytes", found(0.9))[1]
    place.close()
    return is_new


def test_same_bytes_from_several_processes_give_one_image(place: Place, book: RecordBook) -> None:
    """The unique row decides, not a lock inside one process."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(4) as pool:
        barrier = manager.Barrier(4)
        made = pool.starmap(_add_once, [(Place(place.database_url, place.storage_url), barrier)] * 4)
    assert sorted(made) == [False, False, False, True]
    assert len(place.stored_keys()) == 1


def test_checks_really_try(place: Place, book: RecordBook) -> None:
    assert (book.check_database(), book.check_images()) == ("ok", "ok")
    assert place.stored_keys() == set()


def test_database_without_its_tables_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(DatabaseSchemaError, match="has no tables yet: run `just migrate`"):
        Database(world.new_place(tmp_path, has_tables=False).database_url)


@pytest.mark.parametrize("world", NAMES[1:], indirect=True)
def test_restarted_database_costs_nobody_an_answer(world: World, place: Place, book: RecordBook) -> None:
    assert world.database is not None
    record, _ = add(book, b"before", found(0.9))
    world.database.stop(at_once=True)
    try:
        with pytest.raises(DatabaseUnavailableError):
            book.get(record.image_id)
    finally:
        world.database.start()
    assert book.get(record.image_id) == record
    assert add(book, b"after", found(0.9))[1]


@pytest.mark.parametrize("world", NAMES[1:2], indirect=True)
def test_standby_that_lets_nobody_write_is_named_and_left_for_the_new_primary(place: Place, book: RecordBook) -> None:
    record, _ = add(book, b"bytes", found(0.9))
    name = make_url(place.database_url).database
    # A role that it takes on for new connections, as those to a server that has become the standby.
    admin = sqlalchemy.create_engine(place.database_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    place.close()
    book = place.open_book()
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        book.check_database()
    assert book.get(record.image_id) == record
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text("SET default_transaction_read_only = off"))
        connection.execute(sqlalchemy.text(f"ALTER DATABASE {name} SET default_transaction_read_only = off"))
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        book.check_database()  # by the connection that the reading left; it goes
    assert book.check_database() == "ok"


@pytest.mark.parametrize("world", NAMES[1:], indirect=True)
def test_bucket_that_is_away_is_named_so(world: World, place: Place, book: RecordBook) -> None:
    assert world.bucket is not None
    record, _ = add(book, b"bytes", found(0.9))
    world.bucket.stop(at_once=True)
    try:
        for call in (book.check_images, lambda: book.load(record), lambda: add(book, b"more", found(0.9))):
            with pytest.raises(StorageUnavailableError, match="bucket does not work"):
                call()
    finally:
        world.bucket.start()
    if world.bucket.keeps_its_data:
        wait_until(lambda: _has(book, record))  # it answers before it has found its volumes again
    assert add(book, b"more", found(0.9))[1]


def _has(book: RecordBook, record: ImageRecord) -> bool:
    try:
        return book.load(record) == b"bytes"
    except StorageUnavailableError:
        return False


def test_purge_spares_what_was_uploaded_again_since(place: Place) -> None:
    """By a client, while this one and another replica go through the same list."""
    book, other = place.open_book(max_pending=100), place.open_book(max_pending=100)
    fill(book, 3)
    purging = book.purge(0)
    first = next(purging)  # the list is read by now
    second, third = [record for record in contents(place) if record.image_id != first]
    other.delete(second.image_id)
    other.delete(third.image_id)
    newer, _ = add(other, bytes_of(third), found(0.9))
    assert list(purging) == []
    assert contents(place) == [newer]
    assert other.load(newer) == bytes_of(third)


def test_purge_removes_old_images_with_their_bytes(place: Place) -> None:
    book = place.open_book(max_pending=100)
    records = fill(book, 5)
    assert list(book.purge(3600)) == []
    assert set(book.purge(-60)) == {record.image_id for record in records}
    assert place.stored_keys() == set()
    with pytest.raises(NotFoundError):
        book.get(records[0].image_id)
