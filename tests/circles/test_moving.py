"""Copying and backing up: complete, compared, and safe to interrupt."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from circles.storage import checking, moving
from circles.storage.database import Database
from circles.storage.image_records import ImageRecord
from circles.storage.images import ImageStore, new_key, open_image_store
from circles.storage.lock import DataFolderLock
from circles.storage.moving import CopyError
from circles.storage.records import image_id_of
from tests.circles.kept import bytes_of, contents, databases, fill, last, replace_bytes, run, stores, variables
from tests.records import HEADER, add, found
from tests.running import wait_until
from tests.worlds import NAMES, Place, World


@pytest.fixture
def place(world: World, tmp_path: Path) -> Iterator[Place]:
    """Any combination."""
    place = world.new_place(tmp_path / "elsewhere")
    yield place
    place.close()


def test_copies_are_complete_and_serve_like_the_source(local: Place, place: Place) -> None:
    records = fill(local.open_book(max_pending=100), 12)
    source, target = databases(local, place)
    assert len(list(moving.copy_rows(source, target))) == 12
    assert len(list(moving.copy_bytes(target.walk(), *stores(local, place)))) == 12
    copy = place.open_book()
    for number, record in enumerate(records):
        assert copy.get(record.image_id) == record
        assert copy.load(record) == f"bytes {number}".encode()
    assert place.stored_keys() == local.stored_keys()
    # Again: what is there stays, what changed since is brought over.
    local.open_book().finish(records[3], found(0.7))
    assert len(list(moving.copy_rows(source, target))) == 12
    assert [each.detection.score for each in copy.get(records[3].image_id).objects] == [0.7]


def test_another_upload_in_the_target_is_left_alone(local: Place, place: Place) -> None:
    (source,), (target,) = databases(local), databases(place)
    add(local.open_book(), b"bytes", found(0.9))
    key = new_key(image_id_of(b"bytes"))
    theirs = replace(local.open_book().get(image_id_of(b"bytes")), storage_key=key)
    assert target.adopt(source.service_id())
    target.add(theirs, 10)
    with pytest.raises(CopyError, match="another upload"):
        list(moving.copy_rows(*databases(local, place)))
    assert target.find(theirs.image_id) == theirs


def test_another_service_is_not_mixed_with(local: Place, place: Place) -> None:
    add(local.open_book(), b"bytes", found(0.9))
    theirs, _ = add(place.open_book(), b"other bytes", found(0.8))
    with pytest.raises(CopyError, match="another service"):
        list(moving.copy_rows(*databases(local, place)))
    refused = run(local, "copy", "--from", local.storage_url, "--to", place.storage_url)
    assert "do not belong together" in refused.stderr
    assert place.stored_keys() == {theirs.storage_key}


def test_damaged_bytes_are_not_copied(local: Place, place: Place) -> None:
    record, _ = add(local.open_book(), b"bytes")
    source, target = stores(local, place)
    replace_bytes(source, record, b"other")
    with pytest.raises(CopyError, match=r"the source's bytes .* are damaged"):
        list(moving.copy_bytes(iter([record]), source, target))
    replace_bytes(source, record, b"bytes")
    target.save(record.storage_key, b"half", HEADER.media_type)
    with pytest.raises(CopyError, match=r"the target's bytes .* are damaged"):
        list(moving.copy_bytes(iter([record]), source, target))


HALTING = """
import signal
from circles.storage import checking, moving
from circles.storage.__main__ import cli
def halting(copy):
    def steps(*arguments):
        for count, record in enumerate(copy(*arguments), start=1):
            yield record
            if count == {steps}:
                signal.pause()
    return steps
moving.copy_rows, moving.copy_bytes = halting(moving.copy_rows), halting(moving.copy_bytes)
cli()
"""
"""The program, which after so many steps waits for its interruption: else it might be done before that comes."""


def copy_with_interruptions(local: Place, source: str, target: str, done: Callable[[], int]) -> None:
    """Interrupted five times while it copies, and then let go on to its end."""
    arguments = ["copy", "--from", source, "--to", target]
    for number in range(5):
        before = done()
        command = [sys.executable, "-c", HALTING.format(steps=before + 55), *arguments]
        with subprocess.Popen(command, env=variables(local), stderr=subprocess.DEVNULL) as process:
            wait_until(partial(_is_beyond, done, before + 10))
            process.send_signal(signal.SIGKILL if number % 2 else signal.SIGINT)
            assert process.wait(30) != 0
        assert done() < 300
    finished = run(local, *arguments)
    assert "300 images copied and compared" in finished.stdout, finished.stderr


def _is_beyond(done: Callable[[], int], count: int) -> bool:
    return done() >= count


@pytest.mark.parametrize("world", NAMES[1:2], indirect=True)
def test_copy_that_is_interrupted_again_and_again_ends_complete(local: Place, place: Place) -> None:
    """By Ctrl-C and by SIGKILL in turn."""
    fill(local.open_book(max_pending=1000), 300)
    rows = place.open_database()
    copy_with_interruptions(local, local.database_url, place.database_url, rows.count)
    copy_with_interruptions(local, local.storage_url, place.storage_url, lambda: len(place.stored_keys()))
    assert run(place, "check", "--deep").returncode == 0
    assert place.stored_keys() == local.stored_keys()
    assert {record.image_id for record in place.open_book()._database.walk()} == {
        record.image_id for record in local.open_book()._database.walk()
    }


@pytest.mark.parametrize("world", NAMES[1:2], indirect=True)
def test_a_service_is_moved_by_its_new_addresses(local: Place, place: Place) -> None:
    fill(local.open_book(), 5)
    bytes_first = run(place, "copy", "--from", local.storage_url, "--to", place.storage_url)
    assert bytes_first.returncode == 1
    assert "copy its rows first" in bytes_first.stderr
    for source, target in ((local.database_url, place.database_url), (local.storage_url, place.storage_url)):
        assert "5 images copied" in run(place, "copy", "--from", source, "--to", target).stdout
    assert run(place, "check", "--deep").returncode == 0


def test_backup_brings_everything_back(place: Place, tmp_path: Path, world: World) -> None:
    records = fill(place.open_book(max_pending=100), 8)
    backup = tmp_path / "backup"
    assert "8 images in" in run(place, "backup", "--to", str(backup)).stdout
    assert {path.name for path in backup.iterdir()} >= {"db.sqlite3", "images"}
    empty = world.new_place(tmp_path / "empty")
    restored = run(empty, "restore", "--from", str(backup))
    assert "8 images restored" in restored.stdout, restored.stderr
    book = empty.open_book()
    for number, record in enumerate(records):
        assert book.get(record.image_id) == record
        assert book.load(record) == f"bytes {number}".encode()
    empty.close()


def test_later_backup_becomes_what_the_service_has_then(place: Place, tmp_path: Path, world: World) -> None:
    book = place.open_book(max_pending=100)
    kept, finished, again, deleted, twice = fill(book, 5)
    folder = tmp_path / "backup"
    assert run(place, "backup", "--to", str(folder)).returncode == 0
    book.finish(finished, found(0.7))
    book.delete(deleted.image_id)
    for number, record in enumerate((again, twice), start=1):
        book.delete(record.image_id)
        add(book, bytes_of(record), found(number / 10))
    add(book, b"new", found(0.9))
    second = run(place, "backup", "--to", str(folder))
    assert "5 images in" in second.stdout, second.stderr
    backup = Place(f"sqlite:///{folder}/db.sqlite3", f"file:{folder}/images")
    expected = contents(place)
    assert contents(backup) == expected
    assert kept in expected
    empty = world.new_place(tmp_path / "empty")
    restored = run(empty, "restore", "--from", str(folder))
    assert "5 images restored" in restored.stdout, restored.stderr
    assert contents(empty) == expected
    backup.close()
    empty.close()


@pytest.fixture
def backup(tmp_path: Path) -> Iterator[Place]:
    """An empty folder for one."""
    backup = World("backup").new_place(tmp_path / "backup")
    yield backup
    backup.close()


def back_up(source: Place, backup: Place) -> Iterator[ImageRecord]:
    (rows, copied_rows), (files, copied_files) = databases(source, backup), stores(source, backup)
    return moving.back_up(rows, files, copied_rows, copied_files)


def test_image_that_is_deleted_while_it_is_backed_up_leaves_no_row(local: Place, backup: Place) -> None:
    book = local.open_book(max_pending=100)
    fill(book, 4)
    steps = back_up(local, backup)
    first = next(steps)  # all rows are read by now
    second, third, fourth = [record for record in contents(local) if record != first]
    book.delete(third.image_id)
    assert list(steps) == [second, fourth]
    assert contents(backup) == [first, second, fourth]


def test_bytes_that_the_service_lost_stay_in_the_backup(local: Place, backup: Place) -> None:
    records = sorted(fill(local.open_book(max_pending=100), 3), key=lambda record: record.image_id)
    list(back_up(local, backup))
    stores(local)[0].delete(records[1].storage_key)
    list(back_up(local, backup))
    assert contents(backup) == records


def test_row_without_bytes_is_neither_kept_in_a_backup_nor_restored(
    local: Place, backup: Place, place: Place, tmp_path: Path
) -> None:
    records = sorted(fill(local.open_book(max_pending=100), 3), key=lambda record: record.image_id)
    list(back_up(local, backup))
    stores(backup)[0].delete(records[1].storage_key)
    restored = run(place, "restore", "--from", str(tmp_path / "backup" / "data"))
    assert "2 images restored" in restored.stdout, restored.stderr
    assert "1 have no bytes" in restored.stdout
    assert contents(place) == [records[0], records[2]]
    stores(local)[0].delete(records[1].storage_key)
    list(back_up(local, backup))
    assert contents(backup) == [records[0], records[2]]


class CrashError(Exception):
    """Ends a work as a crash would."""


class Interrupted:
    """Passes calls on to a database or a store, until as many as are left of them all together were made."""

    def __init__(self, part: object, left: Iterator[int]) -> None:
        self._part = part
        self._left = left

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(self._left, None) is None:
                raise CrashError
            return getattr(self._part, name)(*arguments, **named)

        return call


@pytest.mark.parametrize("is_restored", [False, True], ids=["backup", "restore"])
def test_interrupted_anywhere_it_has_rows_with_bytes_alone_and_goes_on(
    local: Place, backup: Place, tmp_path: Path, is_restored: bool
) -> None:
    book = local.open_book(max_pending=100)
    records = fill(book, 3)
    throughout: set[str] = set()
    if not is_restored:  # what is replaced, removed and brought up to date
        list(back_up(local, backup))
        book.delete(records[0].image_id)
        book.delete(records[1].image_id)
        add(book, b"bytes 1", found(0.7))
        book.finish(records[2], found(0.6))
        throughout = {record.image_id for record in records[1:]}
    (rows, copied_rows), (files, copied_files) = databases(local, backup), stores(local, backup)
    work = moving.restore if is_restored else moving.back_up
    calls, is_done = 0, False
    while not is_done:
        left = iter(range(calls))
        target = cast("Database", Interrupted(copied_rows, left)), cast("ImageStore", Interrupted(copied_files, left))
        try:
            list(work(rows, files, *target))
            is_done = True
        except CrashError:
            calls += 1
        assert last(checking.check(copied_rows, copied_files, 3600, reads_bytes=True)).is_well
        assert throughout <= {record.image_id for record in copied_rows.walk()}
    assert calls > 10
    assert contents(backup) == contents(local)


def test_half_written_file_of_an_interrupted_copy_is_written_anew(local: Place, tmp_path: Path) -> None:
    (record,) = fill(local.open_book(), 1)
    (source,) = stores(local)
    target = open_image_store(f"file:{tmp_path}/target")
    (tmp_path / "target" / f"{record.storage_key}.part").write_bytes(b"by")
    assert list(moving.copy_bytes(iter([record]), source, target)) == [record]
    assert set(target.keys_older_than(-3600)) == {record.storage_key}


def test_folder_in_use_is_not_backed_up_into(local: Place, tmp_path: Path) -> None:
    """Another backup, or a service whose files would be taken for what the backup should not have."""
    fill(local.open_book(), 1)
    folder = tmp_path / "backup"
    for used in (folder, folder / "images"):
        lock = DataFolderLock(used, holder="somebody else")
        assert "somebody else" in run(local, "backup", "--to", str(folder)).stderr
        lock.release()
    assert "1 images in" in run(local, "backup", "--to", str(folder)).stdout


def test_commands_tell_what_is_wrong_in_a_sentence(local: Place, tmp_path: Path) -> None:
    record, _ = add(local.open_book(), b"bytes", found(0.9))
    add(local.open_book(), b"more bytes", found(0.9))
    add(local.open_book(), b"still more bytes", found(0.9))
    stores(local)[0].delete(record.storage_key)
    checked = run(local, "check")
    assert (checked.returncode, f"image {record.image_id}: its bytes are gone" in checked.stdout) == (1, True)
    mixed = run(local, "copy", "--from", local.database_url, "--to", local.storage_url)
    assert "one of them is a database and the other one a store" in mixed.stderr
    lock = DataFolderLock(tmp_path / "local" / "data", holder="a service")
    assert "in use by" in run(local, "check", "--fix").stderr
    lock.release()
    assert run(local, "check", "--fix").returncode == 0
    assert "2 images" in run(local, "check").stdout
    assert "2 images removed" in run(local, "purge", "--older-than", "0").stdout
