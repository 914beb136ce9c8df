"""ImagePipeline: the way of a picture from its bytes to a durable record, and the work that is finished later."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from circles.detection import ImageDetections
from circles.errors import DetectionFailedError, DetectorUnavailableError
from circles.imaging import ImageHeader, read_header
from circles.settings import Settings
from circles.storage.image_records import ImageRecord
from circles.storage.records import RecordBook, image_id_of
from deployments.async_detectors import AsyncDetector, detect_in_time
from deployments.threads import in_thread
from deployments.timings import carry_into, stage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The record of an upload, and whether this upload made it (or one of the same bytes before it)."""

    record: ImageRecord
    is_new: bool


class ImagePipeline:
    """Stores, detects, records.

    What it begins it finishes, also when the client goes away meanwhile: the work runs in a task of its own.
    """

    def __init__(
        self, book: RecordBook, detector: AsyncDetector, settings: Settings, on_pending: Callable[[], None]
    ) -> None:
        """
        Args:
            on_pending: Called when a picture became pending.
        """
        self._book = book
        self._detector = detector
        self._settings = settings
        self._on_pending = on_pending

    async def upload(self, image_bytes: bytes, filename: str | None, respond_async: bool) -> Uploaded:
        """Keeps a picture and what is in it; durable on return.

        With ``respond_async``, or when no detector answers in time, the record is pending and the reconciler's.

        Raises:
            ImageError: The picture is at fault; nothing is kept.
            OverloadedError: It would be pending and the backlog is full; nothing is kept.
            UnavailableError: Storage or database are away.
        """
        with stage("check"):
            image_id, header, earlier = await in_thread(self._check, image_bytes)
        if earlier is not None:
            return Uploaded(earlier, is_new=False)
        staging = asyncio.create_task(self._stage(image_id, image_bytes, header.media_type))
        try:
            found = None if respond_async else await self._detect_or_none(image_bytes)
        except BaseException:
            await self._book_discard(staging)
            raise
        with stage("file"):
            key = await staging
        with stage("transaction"):
            record, is_new = await in_thread(
                self._book.commit, image_id, key, header, len(image_bytes), filename, found
            )
        if is_new and found is None:
            self._on_pending()
        return Uploaded(record, is_new)

    async def detect_again(self, record: ImageRecord) -> ImageRecord:
        """Detects anew in a stored picture and replaces what was known.

        Raises:
            NotFoundError: The image was deleted meanwhile.
            ImageError, DetectionFailedError, DetectorUnavailableError: Nothing was detected; what was known stays.
            UnavailableError: Storage or database are away.
        """
        await self.finish(record, self._settings.detection_timeout_s)
        return await in_thread(self._book.get, record.image_id)

    async def finish(self, record: ImageRecord, timeout_s: float) -> None:
        """Detects in a stored picture and writes down what was found; raises as ``detect_again``.

        Args:
            timeout_s: That the detector has to answer.
        """
        image_bytes = await in_thread(self._book.load, record)
        found = await detect_in_time(self._detector, image_bytes, timeout_s)
        await in_thread(self._book.finish, record, found)

    async def _stage(self, image_id: str, image_bytes: bytes, media_type: str) -> str:
        with stage("file-beside"):
            return await in_thread(self._book.stage, image_id, image_bytes, media_type)

    def _check(self, image_bytes: bytes) -> tuple[str, ImageHeader, ImageRecord | None]:
        """The id, the header, and the record of the same bytes if they are here already."""
        header = read_header(image_bytes, self._settings.max_image_pixels)
        image_id = image_id_of(image_bytes)
        return image_id, header, self._book.find(image_id)

    async def _detect_or_none(self, image_bytes: bytes) -> ImageDetections | None:
        try:
            return await detect_in_time(self._detector, image_bytes, self._settings.detection_timeout_s)
        except (DetectorUnavailableError, DetectionFailedError):
            return None

    async def _book_discard(self, staging: "asyncio.Task[str]") -> None:
        await asyncio.wait([staging])
        if staging.exception() is None:
            await in_thread(self._book.discard, staging.result())


# The event loop itself holds tasks weakly: one that nobody awaits any more could vanish half-way.
_detached: "set[asyncio.Task[Any]]" = set()


def detached(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Runs work that a disconnecting client must not stop halfway.

    In a context of its own: where Ray Serve looks out for clients that go away, it ends the handle calls of their
    requests, which it knows by the context they were made in.
    """
    task = asyncio.create_task(work, context=carry_into(contextvars.Context()))
    _detached.add(task)
    task.add_done_callback(_detached.discard)
    return task
