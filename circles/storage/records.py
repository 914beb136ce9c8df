"""RecordBook: an image's file and its rows as one promise.

The file is durable before the row that names it is committed, and goes only after that row went, so a row always has
its file. What a crash leaves in between is a file that no row names, and a sweep removes it after a grace age. Every
attempt at an upload writes a file of its own, so neither a retry, a sweep nor a DELETE can take away bytes that
somebody was told are safe.
"""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from circles.detection import ImageDetections
from circles.errors import CirclesError, NotFoundError, OverloadedError, StorageMismatchError, StorageUnavailableError
from circles.imaging import ImageHeader
from circles.storage.database import Database
from circles.storage.image_records import (
    Backlog,
    ImagePage,
    ImageRecord,
    ObjectRecord,
    Status,
    is_image_id,
    is_object_id,
    object_records,
)
from circles.storage.images import PART_SUFFIX, SERVICE_KEY, ImageStore, new_key, sha256_of

logger = logging.getLogger(__name__)

_PURGE_BATCH = 500


def image_id_of(image_bytes: bytes) -> str:
    """The id under which these bytes are kept: their SHA-256, 64 lower-case hex digits."""
    return hashlib.sha256(image_bytes).hexdigest()


def require_belonging(images: ImageStore, database: Database) -> None:
    """Sees to it that nobody takes another service's files for orphans, or its rows for ones whose files are lost.

    Raises:
        StorageMismatchError: The store's files are those of another database.
    """
    service_id = database.service_id()
    theirs = images.claim(service_id)
    if theirs != service_id:
        raise StorageMismatchError(
            f"the store's files are those of another database (service {theirs}, this one is {service_id}): "
            "DATABASE_URL and STORAGE_URL do not belong together. (A store without images forgets its service when its "
            f"'{SERVICE_KEY}' is removed.)"
        )


class RecordBook:
    """Images with their bytes and objects. Calls block, and may come from many threads at once.

    Methods raise DatabaseUnavailableError, StorageUnavailableError and StorageFullError as their parts do.
    """

    def __init__(
        self, images: ImageStore, database: Database, max_pending: int, max_staging_s: float = math.inf
    ) -> None:
        """
        Args:
            max_pending: How many images may wait for detection; more are refused.
            max_staging_s: How old staged bytes may be when they get their row. Where others sweep the same store, well
                below the grace that they give to files without one.

        Raises:
            StorageMismatchError: The store's files are those of another database.
        """
        require_belonging(images, database)
        self._max_staging_s = max_staging_s
        self._images = images
        self._database = database
        self._max_pending = max_pending
        # Keys written here whose row is still to come: a sweep lets them be, whatever their age.
        self._staged_keys: dict[str, float] = {}  # and when (monotonic) they were
        self._staged_lock = threading.Lock()

    def close(self) -> None:
        """Closes the database's connections."""
        self._database.close()

    def stage(self, image_id: str, image_bytes: bytes, media_type: str) -> str:
        """The storage key of the bytes, now durable; to be given to ``commit`` or ``discard``."""
        key = new_key(image_id)
        with self._staged_lock:
            self._staged_keys[key] = time.monotonic()
        try:
            self._images.save(key, image_bytes, media_type)
        except BaseException:
            self._unstage(key)
            raise
        return key

    def discard(self, key: str) -> None:
        """Removes staged bytes that get no row. A store that cannot do so now is no error: a sweep will."""
        self._unstage(key)
        try:
            self._images.delete(key)
        except CirclesError as error:
            logger.warning("%s, which gets no row, stays until a sweep: %s", key, error.detail)

    def commit(
        self,
        image_id: str,
        key: str,
        header: ImageHeader,
        size_bytes: int,
        filename: str | None,
        found: ImageDetections | None,
    ) -> tuple[ImageRecord, bool]:
        """Makes staged bytes an image: done with what was ``found``, pending when that is None.

        When another attempt at the same bytes came first, that one stays and this attempt's file goes.

        Returns:
            The image as it now is, and whether this call made it.

        Raises:
            BacklogFullError: It would be pending and there is no room; the staged bytes are removed.
            StorageUnavailableError: They were staged too long ago, and may have been swept away.
        """
        with self._staged_lock:
            staged_at = self._staged_keys.get(key, -math.inf)
        if time.monotonic() - staged_at > self._max_staging_s:
            self.discard(key)
            raise StorageUnavailableError("the upload took too long between its bytes and its row")
        record = ImageRecord(
            image_id=image_id,
            storage_key=key,
            filename=filename,
            media_type=header.media_type,
            width=header.width,
            height=header.height,
            size_bytes=size_bytes,
            created_at=datetime.now(UTC),
            status="pending" if found is None else "done",
            error=None,
            detector=None if found is None else found.detector,
            objects=() if found is None else object_records(image_id, found.detections),
        )
        try:
            while not self._database.add(record, self._max_pending):
                earlier = self._database.find(image_id)
                # None: deleted between our two looks, so the place is free again.
                if earlier is not None:
                    self.discard(key)
                    return earlier, False
        except OverloadedError:
            self.discard(key)
            raise
        finally:
            # After any other error it is not known whether the row was written: the file stays until a sweep, which
            # asks the database, finds that no row names it.
            self._unstage(key)
        return record, True

    def find(self, image_id: str) -> ImageRecord | None:
        """The image with its objects, None when there is none."""
        return self._database.find(image_id)

    def get(self, image_id: str) -> ImageRecord:
        """The image with its objects.

        Raises:
            NotFoundError: There is none of this id.
        """
        record = self._database.find(image_id) if is_image_id(image_id) else None
        if record is None:
            raise NotFoundError(f"there is no image {image_id}")
        return record

    def get_object(self, image_id: str, object_id: str) -> ObjectRecord:
        """One object of an image.

        Raises:
            NotFoundError: There is no such image, or no such object in it.
        """
        are_ids = is_image_id(image_id) and is_object_id(object_id)
        stored = self._database.find_object(image_id, object_id) if are_ids else None
        if stored is None:
            raise NotFoundError(f"there is no object {object_id} in an image {image_id}")
        return stored

    def load(self, record: ImageRecord) -> bytes:
        """The image's bytes as they were uploaded.

        Raises:
            NotFoundError: The image was deleted meanwhile.
            StorageUnavailableError: What the store has is something else.
        """
        image_bytes = self._images.load(record.storage_key)
        if image_id_of(image_bytes) != sha256_of(record.storage_key):
            raise StorageUnavailableError(f"the stored bytes of image {record.image_id} are damaged")
        return image_bytes

    def stream(self, record: ImageRecord) -> Iterator[bytes]:
        """The image's bytes in pieces; raises NotFoundError before the first of them."""
        return self._images.stream(record.storage_key)

    def signed_url(self, record: ImageRecord, seconds: int) -> str | None:
        """An address at which anybody may read the image's bytes for this time; None where the store has none."""
        return self._images.signed_url(record.storage_key, seconds)

    def page(self, limit: int, cursor: str | None, status: Status | None, min_score: float) -> ImagePage:
        """Some images, newest first; see ``Database.page``."""
        return self._database.page(limit, cursor, status, min_score)

    def backlog(self) -> Backlog:
        """What waits for detection, in the whole service."""
        return self._database.backlog()

    def claim_pending(self, limit: int, lease_s: float) -> list[ImageRecord]:
        """Images that wait for detection, oldest first; for this time nobody else is given them."""
        return self._database.claim_pending(limit, lease_s)

    def rest(self, records: Collection[ImageRecord], rest_s: float) -> None:
        """Gives claimed images back, to be claimed by anybody after this time."""
        self._database.rest(records, rest_s)

    def finish(self, record: ImageRecord, found: ImageDetections) -> bool:
        """Writes down what was found; False when this upload is no longer there, or a claimed one another's by now."""
        return self._database.finish(record, found)

    def fail(self, record: ImageRecord, reason: str) -> bool:
        """Writes down that nothing can be detected, and why; False when this upload is no longer there and pending."""
        return self._database.fail(record, reason)

    def delete(self, image_id: str) -> None:
        """Removes rows and file, whichever upload they are of.

        Raises:
            NotFoundError: There is none of this id.
        """
        key = self._database.delete(image_id) if is_image_id(image_id) else None
        if key is None:
            raise NotFoundError(f"there is no image {image_id}")
        self._images.delete(key)

    def delete_upload(self, record: ImageRecord) -> bool:
        """Removes rows and file of this very upload; False when it is no longer there."""
        if self._database.delete(record.image_id, record.storage_key) is None:
            return False
        self._images.delete(record.storage_key)
        return True

    def purge(self, age_s: float) -> Iterator[str]:
        """Removes images that were uploaded at least so long ago, rows and bytes; yields each one's id."""
        moment = datetime.now(UTC) - timedelta(seconds=age_s)
        while records := self._database.images_before(moment, _PURGE_BATCH):
            for record in records:
                if self.delete_upload(record):
                    yield record.image_id

    def sweep(self, grace_s: float, is_over: Callable[[], bool] = lambda: False) -> int:
        """Removes files of at least this age that no row names, and no upload in progress wrote; how many.

        Args:
            is_over: Asked for every file; when it says so, the rest is left for another time.
        """
        looked_at = takewhile(lambda _: not is_over(), self._images.keys_older_than(grace_s))
        # Whether it is staged is asked before the rows are: a key that is so no more has its row by then.
        old_keys = (key for key in looked_at if not self._is_staged(key))
        removed = 0
        for key in self._database.unnamed_keys(old_keys):
            self._images.delete(key)
            removed += 1
        return removed

    def check_database(self) -> str:
        """Says ok when the database can be read and written."""
        self._database.check()
        return "ok"

    def check_images(self) -> str:
        """Says ok when files can be written durably."""
        self._images.check()
        return "ok"

    def _is_staged(self, key: str) -> bool:
        with self._staged_lock:
            return key.removesuffix(PART_SUFFIX) in self._staged_keys

    def _unstage(self, key: str) -> None:
        with self._staged_lock:
            self._staged_keys.pop(key, None)
