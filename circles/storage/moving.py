"""Moving what is kept: rows from database to database, bytes from store to store, both into a backup and back.

Every step is one transaction or one write, so that work which was interrupted goes on where it was when it is started
again. Functions yield after each step, for those who show progress.
"""

from collections.abc import Iterator

from circles.errors import CirclesError, NotFoundError
from circles.storage.database import Database
from circles.storage.image_records import ImageRecord
from circles.storage.images import ImageStore, sha256_of
from circles.storage.records import RecordBook, image_id_of, require_belonging

_UNLIMITED = 2**62


class CopyError(CirclesError):
    """Source and target do not fit together; the message names the image."""


def copy_rows(source: Database, target: Database) -> Iterator[ImageRecord]:
    """Copies images with their objects, and yields each once it is in the target, read back and compared.

    What the target has besides stays.

    Raises:
        CopyError: The target has images of another service, or another upload of the same bytes.
    """
    _adopt(source, target)
    for record in source.walk():
        _copy_row(record, target, replaces_uploads=False)
        yield record


def copy_bytes(records: Iterator[ImageRecord], source: ImageStore, target: ImageStore) -> Iterator[ImageRecord]:
    """Copies the bytes that these rows name, and yields each row once they are in the target, read back and compared.

    What was deleted from the source meanwhile is passed over.

    Raises:
        CopyError: The source's bytes are damaged, or the target's came out otherwise.
    """
    there = set(target.keys_older_than(0))
    for record in records:
        if record.storage_key not in there:
            try:
                image_bytes = source.load(record.storage_key)
            except NotFoundError:
                continue
            _require_intact(record, image_bytes, "source")
            target.save(record.storage_key, image_bytes, record.media_type)
        _require_intact(record, target.load(record.storage_key), "target")
        yield record


def back_up(
    source: Database, source_store: ImageStore, target: Database, target_store: ImageStore
) -> Iterator[ImageRecord]:
    """Makes the target what the source is now, and yields each image once it is there, read back and compared.

    Bytes come before their row and go after it, so that whenever this is interrupted, each row of the target has its
    bytes, and the next call goes on. A row whose bytes neither has, as after a deletion meanwhile, is passed over. The
    target must have no other user.

    Raises:
        CopyError: The target has images of another service, or bytes are damaged.
        StorageMismatchError: The target's bytes are those of another service.
    """
    _adopt(source, target)
    book = RecordBook(target_store, target, max_pending=0)
    copied = set()
    for record in copy_bytes(source.walk(), source_store, target_store):
        _copy_row(record, target, replaces_uploads=True)
        copied.add(record.storage_key)
        yield record
    for record in target.walk():
        if record.storage_key not in copied:
            book.delete_upload(record)
    book.sweep(grace_s=0)


def restore(
    source: Database, source_store: ImageStore, target: Database, target_store: ImageStore
) -> Iterator[ImageRecord]:
    """Copies a backup back, and yields each image once it is in the target, read back and compared; bytes come before
    their row, and a row without bytes is passed over.

    What the target has besides stays.

    Raises:
        CopyError: The target has images of another service, or another upload of the same bytes, or bytes are damaged.
        StorageMismatchError: The target's bytes are those of another service.
    """
    # Before the target's rows adopt an id that its bytes do not have.
    require_belonging(target_store, source)
    _adopt(source, target)
    for record in copy_bytes(source.walk(), source_store, target_store):
        _copy_row(record, target, replaces_uploads=False)
        yield record


def _adopt(source: Database, target: Database) -> None:
    if not target.adopt(source.service_id()):
        raise CopyError("the target has images of another service")


def _copy_row(record: ImageRecord, target: Database, *, replaces_uploads: bool) -> None:
    there = target.find(record.image_id)
    if there is None:
        target.add(record, max_pending=_UNLIMITED)
    elif there.storage_key != record.storage_key and not replaces_uploads:
        raise CopyError(f"the target's image {record.image_id} is another upload of these bytes")
    elif there != record:  # an earlier copy, of what was known then
        target.replace(there, record)
    if target.find(record.image_id) != record:
        raise CopyError(f"image {record.image_id} came out otherwise")


def _require_intact(record: ImageRecord, image_bytes: bytes, whose: str) -> None:
    if image_id_of(image_bytes) != sha256_of(record.storage_key):
        raise CopyError(f"the {whose}'s bytes of image {record.image_id} are damaged")
