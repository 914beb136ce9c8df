"""What waits for detection: it is finished once, by one of any number of services, and its number has an end."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from circles.detection import DetectorInfo
from circles.errors import (
    BacklogFullError,
)
from circles.storage.image_records import Backlog
from circles.storage.records import RecordBook
from tests.records import add, found
from tests.worlds import Place


def test_pending_image_is_finished_once(book: RecordBook) -> None:
    record, _ = add(book, b"bytes")
    assert (record.status, record.detector) == ("pending", None)
    assert [pending.image_id for pending in book.claim_pending(5, lease_s=60)] == [record.image_id]
    assert book.claim_pending(5, lease_s=60) == []
    assert book.finish(record, found(0.9))
    finished = book.get(record.image_id)
    assert (finished.status, finished.detector, len(finished.objects)) == ("done", DetectorInfo("fixed", "1"), 1)
    book.rest([record], 0)
    assert book.claim_pending(5, lease_s=60) == []


def test_backlog_is_what_waits_and_since_when(book: RecordBook) -> None:
    assert book.backlog() == Backlog(0, None)
    add(book, b"done", found(0.9))
    oldest, _ = add(book, b"first")
    newest, _ = add(book, b"second")
    assert book.backlog() == Backlog(2, oldest.created_at)
    assert book.finish(oldest, found(0.9))
    assert book.backlog() == Backlog(1, newest.created_at)


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


def test_backlog_has_an_end(place: Place) -> None:
    book = place.open_book(max_pending=2)
    kept = {add(book, bytes([number]))[0].storage_key for number in range(2)}
    with pytest.raises(BacklogFullError, match="2 pictures"):
        add(book, b"one too many")
    assert place.stored_keys() == kept
    add(book, b"done at once", found(0.9))


def test_claimed_pictures_are_nobody_elses_until_their_lease_ends(place: Place, book: RecordBook) -> None:
    records = [add(book, bytes([number]))[0] for number in range(5)]
    other = place.open_book()
    first = book.claim_pending(2, lease_s=60)
    assert [record.image_id for record in first] == [record.image_id for record in records[:2]]
    second = other.claim_pending(10, lease_s=60)
    assert [record.image_id for record in second] == [record.image_id for record in records[2:]]
    assert book.claim_pending(10, lease_s=60) == other.claim_pending(10, lease_s=60) == []
    book.rest(first, 0)
    assert {record.image_id for record in other.claim_pending(10, lease_s=0)} == {r.image_id for r in first}
    assert {record.image_id for record in book.claim_pending(10, lease_s=60)} == {r.image_id for r in first}
    assert book.finish(records[4], found(0.9))


def test_a_long_rest_is_a_rest(book: RecordBook) -> None:
    """One that ends later than any lease would count as one from before the clock was set back, and for none."""
    add(book, b"1")
    records = book.claim_pending(1, lease_s=1)
    book.rest(records, 100_000)
    assert book.claim_pending(1, lease_s=1) == []


def test_many_who_claim_at_once_get_different_pictures(place: Place, book: RecordBook) -> None:
    big = place.open_book(max_pending=100)
    expected = {add(big, bytes([number]))[0].image_id for number in range(40)}
    books = [place.open_book() for _ in range(4)]
    start = threading.Barrier(4)

    def claims(mine: RecordBook) -> list[str]:
        start.wait()
        claimed: list[str] = []
        while records := mine.claim_pending(3, lease_s=60):
            claimed += [record.image_id for record in records]
        return claimed

    with ThreadPoolExecutor(4) as pool:
        claimed = [image_id for ids in pool.map(claims, books) for image_id in ids]
    # A locked row is passed over: what one round left, the next one finds.
    claimed += [record.image_id for record in book.claim_pending(40, lease_s=60)]
    assert len(claimed) == len(set(claimed)) == 40
    assert set(claimed) == expected


def test_slow_claimer_does_not_undo_what_another_one_did(place: Place, book: RecordBook) -> None:
    add(book, b"bytes")
    other = place.open_book()
    (slow,) = book.claim_pending(1, lease_s=0)
    (quick,) = other.claim_pending(1, lease_s=60)
    assert not book.finish(slow, found(0.1))
    assert not book.fail(slow, "too late")
    book.rest([slow], 0)  # nor does it hand on what is the other one's
    assert book.claim_pending(1, lease_s=60) == []
    assert other.finish(quick, found(0.9))
    kept = book.get(quick.image_id)
    assert not book.finish(slow, found(0.1))
    assert not other.finish(quick, found(0.2))
    assert book.get(quick.image_id) == kept
    # Asked for by a client, who has claimed nothing, it is done anew.
    assert book.finish(kept, found(0.5))
