"""Whether rows and bytes agree, and the removal of those that do not."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from circles.errors import NotFoundError, StorageMismatchError
from circles.storage.database import Database
from circles.storage.image_records import ImageRecord
from circles.storage.images import ImageStore, sha256_of
from circles.storage.records import RecordBook, image_id_of


@dataclass
class Findings:
    """What is wrong with rows and bytes."""

    rows: int = 0
    lost: list[ImageRecord] = field(default_factory=list)
    """Rows whose bytes are gone."""
    damaged: list[ImageRecord] = field(default_factory=list)
    """Rows whose bytes are not those that were uploaded."""
    orphans: list[str] = field(default_factory=list)
    """Keys of bytes that no row names."""

    @property
    def is_well(self) -> bool:
        """Whether rows and bytes agree."""
        return not (self.lost or self.damaged or self.orphans)


def check(database: Database, store: ImageStore, grace_s: float, *, reads_bytes: bool) -> Iterator[Findings]:
    """Compares rows and bytes both ways; yields the same findings after each row, and with orphans at the end.

    Args:
        grace_s: Age from which bytes without a row are orphans.
        reads_bytes: Whether all bytes are read and compared with their hashes.
    """
    findings = Findings()
    ages = dict(store.ages())
    for record in database.walk():
        findings.rows += 1
        if ages.pop(record.storage_key, None) is None and _is_lost(database, store, record):
            findings.lost.append(record)
        elif reads_bytes and not _is_intact(store, record):
            findings.damaged.append(record)
        yield findings
    # Asked again: a row may have come since its part of the table was read.
    findings.orphans = list(database.unnamed_keys(sorted(key for key, age_s in ages.items() if age_s >= grace_s)))
    yield findings


def fix(book: RecordBook, store: ImageStore, findings: Findings) -> None:
    """Removes rows whose bytes are lost or damaged, and bytes that no row names; what was uploaded again since stays.

    Raises:
        StorageMismatchError: More than half of the rows would go: then it is the store's address that is wrong.
    """
    broken = [*findings.lost, *findings.damaged]
    if len(broken) > findings.rows / 2:
        raise StorageMismatchError(f"{len(broken)} of {findings.rows} images have no bytes: is this the right store?")
    for record in broken:
        book.delete_upload(record)
    for key in findings.orphans:
        store.delete(key)


def _is_lost(database: Database, store: ImageStore, record: ImageRecord) -> bool:
    """Whether it still is: it may have come, or gone, since the store was listed."""
    try:
        store.load(record.storage_key)
    except NotFoundError:
        return database.find(record.image_id) == record
    return False


def _is_intact(store: ImageStore, record: ImageRecord) -> bool:
    try:
        return image_id_of(store.load(record.storage_key)) == sha256_of(record.storage_key)
    except NotFoundError:
        return True  # deleted meanwhile
