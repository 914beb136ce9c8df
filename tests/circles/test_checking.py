"""Rows and bytes that do not agree are found, and only those are removed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from circles.errors import StorageMismatchError
from circles.storage import checking
from circles.storage.records import image_id_of
from tests.circles.kept import contents, databases, fill, last, replace_bytes, stores
from tests.records import HEADER, add, found
from tests.worlds import Place


def test_check_finds_and_fix_removes_what_does_not_agree(place: Place) -> None:
    book = place.open_book(max_pending=100)
    records = fill(book, 8)
    (database,), (store,) = databases(place), stores(place)
    assert last(checking.check(database, store, 0, reads_bytes=True)).is_well
    store.delete(records[1].storage_key)
    replace_bytes(store, records[2], b"other")
    orphan = book.stage(image_id_of(b"orphan"), b"orphan", HEADER.media_type)

    shallow = last(checking.check(database, store, -3600, reads_bytes=False))
    assert (shallow.lost, shallow.damaged, shallow.orphans, shallow.rows) == ([records[1]], [], [orphan], 8)
    young = last(checking.check(database, store, 3600, reads_bytes=True))
    assert (young.lost, young.damaged, young.orphans) == ([records[1]], [records[2]], [])

    checking.fix(book, store, last(checking.check(database, store, -3600, reads_bytes=True)))
    assert last(checking.check(database, store, -3600, reads_bytes=True)).is_well
    assert database.count() == 6
    assert orphan not in place.stored_keys()


def test_fix_does_not_believe_in_a_store_that_has_next_to_nothing(place: Place) -> None:
    book = place.open_book(max_pending=100)
    (database,), (store,) = databases(place), stores(place)
    for record in fill(book, 4)[:3]:
        store.delete(record.storage_key)
    with pytest.raises(StorageMismatchError, match=r"3 of 4 images .* is this the right store"):
        checking.fix(book, store, last(checking.check(database, store, 0, reads_bytes=False)))
    assert database.count() == 4


def test_check_lists_the_store_once(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(local.open_book(), 2)
    (database,), (store,) = databases(local), stores(local)
    listed: list[Path] = []
    iterdir = Path.iterdir

    def noted_iterdir(path: Path) -> Iterator[Path]:
        listed.append(path)
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", noted_iterdir)
    assert last(checking.check(database, store, 3600, reads_bytes=True)).is_well
    assert len(listed) == len(set(listed)) == 256


def test_fix_spares_what_was_uploaded_again_since(place: Place) -> None:
    book = place.open_book(max_pending=100)
    (database,), (store,) = databases(place), stores(place)
    lost, damaged, gone, *_ = fill(book, 8)
    store.delete(lost.storage_key)
    store.delete(gone.storage_key)
    replace_bytes(store, damaged, b"other")
    findings = last(checking.check(database, store, 3600, reads_bytes=True))
    for record in (lost, damaged, gone):
        book.delete(record.image_id)
    newer = [add(book, image_bytes, found(0.9))[0] for image_bytes in (b"bytes 0", b"bytes 1")]
    checking.fix(book, store, findings)
    assert [book.get(record.image_id) for record in newer] == newer
    assert len(contents(place)) == 7
