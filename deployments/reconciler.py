"""Reconciler: finishes what uploads had to leave behind, and removes files that no row names."""

import asyncio
import logging
import time
from functools import partial

import anyio.to_thread

from circles.errors import CirclesError, DetectionFailedError, ImageError, NotFoundError
from circles.settings import Settings
from circles.storage.database import ImageRecord
from circles.storage.records import RecordBook
from deployments.pipeline import ImagePipeline

logger = logging.getLogger("ray.serve")

_MAX_AT_ONCE = 8
_FIRST_RETRY_S = 1.0
_SWEEP_PERIOD_S = 600.0


class Reconciler:
    """Takes up pending pictures at start, whenever it is woken, and periodically."""

    def __init__(self, book: RecordBook, settings: Settings) -> None:
        self._book = book
        self._settings = settings
        self._wakeup = asyncio.Event()
        self._in_work: dict[str, asyncio.Task[None]] = {}
        # Image id -> how often it was tried in vain, and when (monotonic) it may be tried again.
        self._setbacks: dict[str, tuple[int, float]] = {}

    def wake(self) -> None:
        """Looks for pending pictures now rather than at the next period."""
        self._wakeup.set()

    async def run(self, pipeline: ImagePipeline) -> None:
        """Works until cancelled."""
        next_sweep = time.monotonic()
        try:
            while True:
                self._wakeup.clear()
                try:
                    await self._take_up(pipeline)
                    if time.monotonic() >= next_sweep:
                        next_sweep = time.monotonic() + _SWEEP_PERIOD_S
                        await self._sweep()
                except CirclesError as error:
                    logger.warning("the reconciler waits: %s", error.detail)
                await self._rest()
        finally:
            for task in self._in_work.values():
                task.cancel()

    async def _take_up(self, pipeline: ImagePipeline) -> None:
        free = _MAX_AT_ONCE - len(self._in_work)
        if free <= 0:
            return
        now = time.monotonic()
        resting = {image_id for image_id, (_, not_before) in self._setbacks.items() if not_before > now}
        excluded = resting.union(self._in_work)
        records = await anyio.to_thread.run_sync(self._book.pending, free, excluded)
        if len(records) < free:
            # No more are pending than these, so what was set back before and is not among them is history.
            waiting = excluded.union(record.image_id for record in records)
            self._setbacks = {key: setback for key, setback in self._setbacks.items() if key in waiting}
        for record in records:
            task = asyncio.create_task(self._finish(pipeline, record))
            self._in_work[record.image_id] = task
            task.add_done_callback(partial(self._put_down, record.image_id))

    async def _finish(self, pipeline: ImagePipeline, record: ImageRecord) -> None:
        try:
            await pipeline.finish(record, self._settings.background_timeout_s)
        except (ImageError, DetectionFailedError, NotFoundError) as error:
            # Trying again would end the same way.
            await anyio.to_thread.run_sync(self._book.fail, record, error.detail)
            logger.warning("image %s failed: %s", record.image_id, error.detail)
        self._setbacks.pop(record.image_id, None)

    def _put_down(self, image_id: str, task: "asyncio.Task[None]") -> None:
        del self._in_work[image_id]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, CirclesError):
            logger.warning("image %s stays pending: %s", image_id, error.detail)
        elif error is not None:
            logger.error("the reconciler stumbled over image %s", image_id, exc_info=error)
        if error is not None:
            tries = self._setbacks.get(image_id, (0, 0.0))[0] + 1
            delay_s = min(_FIRST_RETRY_S * 2 ** (tries - 1), self._settings.reconcile_period_s)
            self._setbacks[image_id] = (tries, time.monotonic() + delay_s)
        self.wake()

    async def _rest(self) -> None:
        """Until woken, or the next picture may be tried again, or the period is over."""
        now = time.monotonic()
        retries = [not_before - now for _, not_before in self._setbacks.values() if not_before > now]
        try:
            async with asyncio.timeout(min([self._settings.reconcile_period_s, *retries])):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _sweep(self) -> None:
        removed = await anyio.to_thread.run_sync(self._book.sweep, self._settings.orphan_grace_s)
        if removed:
            logger.info("removed %d files that no image names", removed)
