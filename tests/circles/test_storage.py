"""Files and rows: durable, together, and never taken away from somebody who was told they are safe."""

import errno
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pysqlite3
import pytest

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.errors import (
    BacklogFullError,
    DatabaseUnavailableError,
    DataFolderLockedError,
    NotFoundError,
    StorageFullError,
    StorageUnavailableError,
)
from circles.geometry import Circle
from circles.imaging import ImageHeader
from circles.storage.database import Database, ImageRecord
from circles.storage.images import ImageStore
from circles.storage.lock import DataFolderLock
from circles.storage.records import RecordBook, image_id_of

HEADER = ImageHeader("image/png", 100, 80)


def found(*scores: float) -> ImageDetections:
    circle = Circle(50, 40, 20)
    detections = tuple(Detection(circle, circle.bbox(), score) for score in scores)
    return ImageDetections(100, 80, DetectorInfo("fixed", "1"), detections)


@pytest.fixture
def book(tmp_path: Path) -> RecordBook:
    return open_book(tmp_path)


def open_book(folder: Path, max_pending: int = 10) -> RecordBook:
    return RecordBook(ImageStore(folder / "images"), Database(f"sqlite:///{folder}/db.sqlite3"), max_pending)


def add(book: RecordBook, image_bytes: bytes, result: ImageDetections | None = None) -> tuple[ImageRecord, bool]:
    image_id = image_id_of(image_bytes)
    key = book.stage(image_id, image_bytes)
    return book.commit(image_id, key, HEADER, len(image_bytes), "x.png", result)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_image_comes_back_whole_after_reopening(tmp_path: Path, book: RecordBook) -> None:
    record, is_new = add(book, b"bytes", found(0.9, 0.5))
    assert is_new
    again = open_book(tmp_path)
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


def test_second_attempt_at_the_same_bytes_gives_way(tmp_path: Path, book: RecordBook) -> None:
    first, _ = add(book, b"bytes", found(0.9))
    second, is_new = add(book, b"bytes", found(0.8, 0.7))
    assert (second, is_new) == (first, False)
    assert files_in(tmp_path / "images") == {first.storage_key}


def test_pending_image_is_finished_once(book: RecordBook) -> None:
    record, _ = add(book, b"bytes")
    assert (record.status, record.detector) == ("pending", None)
    assert [pending.image_id for pending in book.pending(5)] == [record.image_id]
    assert book.pending(5, excluded_ids={record.image_id}) == []
    assert book.finish(record, found(0.9))
    finished = book.get(record.image_id)
    assert (finished.status, finished.detector, len(finished.objects)) == ("done", DetectorInfo("fixed", "1"), 1)
    assert book.pending(5) == []


def test_done_image_is_not_made_failed(book: RecordBook) -> None:
    record, _ = add(book, b"bytes", found(0.9))
    assert not book.fail(record, "too late")
    assert book.get(record.image_id) == record


def test_failed_image_tells_why_and_can_still_be_finished(book: RecordBook) -> None:
    record, _ = add(book, b"bytes")
    assert book.fail(record, "too dark")
    assert (book.get(record.image_id).status, book.get(record.image_id).error) == ("failed", "too dark")
    assert book.finish(record, found())
    assert (book.get(record.image_id).status, book.get(record.image_id).error) == ("done", None)


def test_what_was_deleted_meanwhile_is_not_finished(book: RecordBook) -> None:
    """Also when the same bytes came again since: they are another upload."""
    record, _ = add(book, b"bytes")
    book.delete(record.image_id)
    assert not book.finish(record, found(0.9))
    newer, _ = add(book, b"bytes")
    assert newer.storage_key != record.storage_key
    assert not book.finish(record, found(0.9))
    assert not book.fail(record, "late")
    assert book.get(record.image_id).status == "pending"


def test_backlog_has_an_end(tmp_path: Path) -> None:
    book = open_book(tmp_path, max_pending=2)
    kept = {add(book, bytes([number]))[0].storage_key for number in range(2)}
    with pytest.raises(BacklogFullError, match="2 pictures"):
        add(book, b"one too many")
    assert files_in(tmp_path / "images") == kept
    add(book, b"done at once", found(0.9))


def test_delete_removes_rows_and_file(tmp_path: Path, book: RecordBook) -> None:
    record, _ = add(book, b"bytes", found(0.9))
    book.delete(record.image_id)
    assert files_in(tmp_path / "images") == set()
    with pytest.raises(NotFoundError):
        book.load(record)
    with pysqlite3.connect(tmp_path / "db.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM objects").fetchone() == (0,)
    connection.close()


def test_sweep_removes_only_old_files_that_no_row_names(tmp_path: Path, book: RecordBook) -> None:
    named, _ = add(book, b"named", found(0.9))
    staged = book.stage(image_id_of(b"staged"), b"staged")
    store = ImageStore(tmp_path / "images")
    orphan = store.new_key(image_id_of(b"orphan"))
    store.save(orphan, b"orphan")
    half_written = tmp_path / "images" / (store.new_key(image_id_of(b"half")) + ".part")
    half_written.write_bytes(b"ha")
    assert book.sweep(grace_s=60) == 0
    assert book.sweep(grace_s=0) == 2
    assert files_in(tmp_path / "images") == {named.storage_key, staged}


def test_sweep_lets_a_file_be_that_is_just_being_written(
    tmp_path: Path, book: RecordBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def sweep_and_rename(path: Path, target: Path) -> Path:
        assert book.sweep(grace_s=0) == 0
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", sweep_and_rename)
    record, _ = add(book, b"bytes", found(0.9))
    assert book.load(record) == b"bytes"


def test_sweep_touches_nothing_that_the_store_did_not_write(tmp_path: Path, book: RecordBook) -> None:
    """Somebody's own pictures in the same folder, and whatever else a volume may hold."""
    folder = tmp_path / "images"
    (folder / "holiday").mkdir()
    foreign = ["holiday/paris.jpg", "README", "aa/notes.txt", f"aa/bb.{'0' * 32}"]
    for name in foreign:
        (folder / name).write_bytes(b"mine")
    (folder / "aa" / "folder").mkdir()
    assert book.sweep(grace_s=0) == 0
    assert files_in(folder) == set(foreign)


def test_only_an_image_that_is_there_counts_as_there(book: RecordBook) -> None:
    """What else the database refuses is an error, and no reason to try again for ever."""
    circle = Circle(float("nan"), 40, 20)
    broken = ImageDetections(
        100, 80, DetectorInfo("fixed", "1"), (Detection(circle, found(1).detections[0].bbox, 0.9),)
    )
    with pytest.raises(DatabaseUnavailableError):
        add(book, b"bytes", broken)
    assert book.find(image_id_of(b"bytes")) is None
    assert add(book, b"bytes", found(0.9))[1]


def test_locked_database_is_told_in_time_to_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circles.storage.database._BUSY_TIMEOUT_S", 0.5)
    book = open_book(tmp_path)
    holder = pysqlite3.connect(tmp_path / "db.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    def attempt(number: int) -> float:
        start = time.monotonic()
        with pytest.raises(DatabaseUnavailableError):
            add(book, bytes([number]), found(0.9))
        return time.monotonic() - start

    with ThreadPoolExecutor(6) as pool:
        waits_s = list(pool.map(attempt, range(6)))
    holder.execute("ROLLBACK")
    holder.close()
    # The queue's wait and SQLite's own: not one after the other for everybody.
    assert max(waits_s) < 2.0
    assert add(book, b"now", found(0.9))[1]


def test_retry_sweep_and_delete_at_once_take_nothing_that_was_acknowledged(tmp_path: Path, book: RecordBook) -> None:
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
    assert files_in(tmp_path / "images") == remaining


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


def _add_once(folder: str, barrier: "multiprocessing.synchronize.Barrier") -> bool:
    book = open_book(Path(folder))
    barrier.wait()
    return add(book, b"the same bytes", found(0.9))[1]


def test_same_bytes_from_several_processes_give_one_image(tmp_path: Path) -> None:
    """The unique row decides, not a lock inside one process."""
    context = multiprocessing.get_context("spawn")
    open_book(tmp_path)
    with context.Manager() as manager, context.Pool(4) as pool:
        barrier = manager.Barrier(4)
        made = pool.starmap(_add_once, [(str(tmp_path), barrier)] * 4)
    assert sorted(made) == [False, False, False, True]
    assert len(files_in(tmp_path / "images")) == 1


def test_durable_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and then its folder are fsynced, with the rename between them."""
    store = ImageStore(tmp_path / "images")
    events: list[str] = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"fsync {'folder' if path.is_dir() else path.suffix}, final: {target.exists()}")
        fsync(descriptor)

    key = store.new_key("ab" * 32)
    target = tmp_path / "images" / key
    monkeypatch.setattr("circles.storage.images.os.fsync", noted_fsync)
    store.save(key, b"bytes")
    assert events == ["fsync .part, final: False", "fsync folder, final: True"]


def test_database_is_durable_by_its_settings(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/db.sqlite3")
    with database._read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    assert tuple(int(part) for part in str(version).split(".")) > (3, 51, 2)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, StorageFullError), (errno.EIO, StorageUnavailableError)],
    ids=["full", "I/O"],
)
def test_failing_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    store = ImageStore(tmp_path / "images")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("circles.storage.images.os.fsync", fail)
    with pytest.raises(expected):
        store.save(store.new_key("ab" * 32), b"bytes")
    assert files_in(tmp_path / "images") == set()


def test_unusable_database_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite3").write_bytes(b"this is no database, whatever its name says" * 50)
    before = (tmp_path / "db.sqlite3").read_bytes()
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        Database(f"sqlite:///{tmp_path}/db.sqlite3")
    assert (tmp_path / "db.sqlite3").read_bytes() == before


def test_checks_really_try(tmp_path: Path, book: RecordBook) -> None:
    assert (book.check_database(), book.check_images()) == ("ok", "ok")
    assert files_in(tmp_path / "images") == set()
    for folder in (tmp_path / "images").iterdir():
        folder.rmdir()
    with pytest.raises(StorageUnavailableError):
        book.check_images()
    assert book.check_database() == "ok"


def test_a_volume_that_went_away_is_not_taken_for_a_lost_picture(tmp_path: Path, book: RecordBook) -> None:
    record, _ = add(book, b"bytes")
    (tmp_path / "images").rename(tmp_path / "unmounted")
    with pytest.raises(StorageUnavailableError, match="folders are gone"):
        book.load(record)
    (tmp_path / "unmounted").rename(tmp_path / "images")
    assert book.load(record) == b"bytes"


def test_data_folder_has_one_holder_who_is_named(tmp_path: Path) -> None:
    lock = DataFolderLock(tmp_path, holder="the first service")
    with pytest.raises(DataFolderLockedError, match=rf'the first service".*"pid": {os.getpid()}'):
        DataFolderLock(tmp_path, holder="the second service")
    lock.release()
    DataFolderLock(tmp_path, holder="the third service").release()


def test_data_folder_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from circles.storage.lock import DataFolderLock;"
        "lock = DataFolderLock(Path(sys.argv[1]), 'a doomed service'); print('locked', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            with pytest.raises(DataFolderLockedError, match="a doomed service"):
                DataFolderLock(tmp_path, holder="x")
        finally:
            process.kill()
        DataFolderLock(tmp_path, holder="the heir", wait_s=10).release()
