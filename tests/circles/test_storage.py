"""Files and rows: durable, together, and never taken away from somebody who was told they are safe."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pysqlite3
import pytest

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.errors import (
    DatabaseUnavailableError,
    DataFolderLockedError,
    NotFoundError,
    StorageFullError,
    StorageUnavailableError,
)
from circles.geometry import Circle
from circles.storage.database import Database
from circles.storage.folder import FolderStore
from circles.storage.images import SERVICE_KEY, new_key
from circles.storage.lock import DataFolderLock
from circles.storage.records import RecordBook, image_id_of
from tests.records import HEADER, add, found


@pytest.fixture
def book(tmp_path: Path) -> RecordBook:
    return open_book(tmp_path)


def open_book(folder: Path, max_pending: int = 10) -> RecordBook:
    return RecordBook(
        FolderStore(folder / "images"), Database(f"sqlite:///{folder}/db.sqlite3", migrates=True), max_pending
    )


def files_in(folder: Path) -> set[str]:
    """All but the mark of whose they are."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return paths - {SERVICE_KEY}


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
    staged = book.stage(image_id_of(b"staged"), b"staged", "image/png")
    store = FolderStore(tmp_path / "images")
    orphan = new_key(image_id_of(b"orphan"))
    store.save(orphan, b"orphan", "image/png")
    half_written = tmp_path / "images" / (new_key(image_id_of(b"half")) + ".part")
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


def test_locked_database_is_told_in_time_to_all_who_wait(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/db.sqlite3", timeout_s=0.5, migrates=True)
    book = RecordBook(FolderStore(tmp_path / "images"), database, max_pending=10)
    holder = pysqlite3.connect(tmp_path / "db.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    def attempt(image_id: str, key: str) -> float:
        start = time.monotonic()
        with pytest.raises(DatabaseUnavailableError):
            book.commit(image_id, key, HEADER, 1, "x.png", found(0.9))
        return time.monotonic() - start

    files = [bytes([number]) for number in range(6)]
    image_ids = [image_id_of(each) for each in files]
    # Staged beforehand: what a disk takes for that is no wait for the database.
    keys = [book.stage(image_id, each, HEADER.media_type) for image_id, each in zip(image_ids, files, strict=True)]
    with ThreadPoolExecutor(6) as pool:
        waits_s = list(pool.map(attempt, image_ids, keys))
    holder.execute("ROLLBACK")
    holder.close()
    # The queue's wait and SQLite's own: not one after the other for everybody.
    assert max(waits_s) < 2.0
    assert add(book, b"now", found(0.9))[1]


def test_durable_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and then its folder are fsynced, with the rename between them."""
    store = FolderStore(tmp_path / "images")
    events: list[str] = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"fsync {'folder' if path.is_dir() else path.suffix}, final: {target.exists()}")
        fsync(descriptor)

    key = new_key("ab" * 32)
    target = tmp_path / "images" / key
    monkeypatch.setattr("circles.storage.folder.os.fsync", noted_fsync)
    store.save(key, b"bytes", "image/png")
    assert events == ["fsync .part, final: False", "fsync folder, final: True"]


@pytest.mark.parametrize(
    "make",
    [
        FolderStore,
        lambda folder: Database(f"sqlite:///{folder}/db.sqlite3", migrates=True).close(),
        lambda folder: DataFolderLock(folder, holder="a service").release(),
    ],
    ids=["images", "database", "lock"],
)
def test_each_new_folder_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    """What names it is fsynced, all the way up to what was there before."""
    names: dict[Path, set[str]] = {}
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            names[path] = {each.name for each in path.iterdir()}
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    make(tmp_path / "new" / "data" / "images")
    assert "new" in names[tmp_path]
    assert "data" in names[tmp_path / "new"]
    assert "images" in names[tmp_path / "new" / "data"]


def test_database_is_durable_by_its_settings(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/db.sqlite3", migrates=True)
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
    store = FolderStore(tmp_path / "images")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("circles.storage.folder.os.fsync", fail)
    with pytest.raises(expected):
        store.save(new_key("ab" * 32), b"bytes", "image/png")
    assert files_in(tmp_path / "images") == set()


def test_unusable_database_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite3").write_bytes(b"this is no database, whatever its name says" * 50)
    before = (tmp_path / "db.sqlite3").read_bytes()
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        Database(f"sqlite:///{tmp_path}/db.sqlite3", migrates=True)
    assert (tmp_path / "db.sqlite3").read_bytes() == before


def test_checks_really_try(tmp_path: Path, book: RecordBook) -> None:
    assert (book.check_database(), book.check_images()) == ("ok", "ok")
    assert files_in(tmp_path / "images") == set()
    for folder in (tmp_path / "images").iterdir():
        if folder.is_dir():
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
