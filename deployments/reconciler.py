"""Reconciler: finishes what uploads had to leave behind, and removes what nobody needs any more."""

import asyncio
import itertools
import logging
import time

from circles.errors import CirclesError, DetectionFailedError, ImageError, NotFoundError
from circles.settings import Settings
from circles.storage.image_records import ImageRecord
from circles.storage.records import RecordBook
from deployments.metrics import BacklogGauges
from deployments.pipeline import ImagePipeline
from deployments.threads import in_thread

logger = logging.getLogger("ray.serve")

_MAX_AT_ONCE = 8
_FIRST_RETRY_S = 1.0
_SWEEP_PERIOD_S = 600.0
_DAY_S = 86400.0
_MOST_DOUBLINGS = 20
_FORGET_SETBACKS_S = 3600.0


class Reconciler:
    """Takes up pending pictures at start, whenever it is woken, and periodically.

    Any number of services may do so at one database: each claims what it works on, and what it lets rest.
    """

    def __init__(self, book: RecordBook, settings: Settings) -> None:
        self._book = book
        self._settings = settings
        self._gauges = BacklogGauges()
        self._wakeup = asyncio.Event()
        self._in_work: dict[asyncio.Task[None], ImageRecord] = {}
        # Image id -> how often it was tried in vain, and when (monotonic) it may be tried again.
        self._setbacks: dict[str, tuple[int, float]] = {}
        self._is_ending = False

    def wake(self) -> None:
        """Looks for pending pictures now rather than at the next period."""
        self._wakeup.set()

    async def run(self, pipeline: ImagePipeline) -> None:
        """Works until cancelled."""
        sweeping = asyncio.create_task(self._sweep_now_and_then())
        try:
            while True:
                self._wakeup.clear()
                try:
                    self._gauges.set(await in_thread(self._book.backlog))  # also where none can be claimed
                    await self._take_up(pipeline)
                except CirclesError as error:
                    logger.warning("the reconciler waits: %s", error.detail)
                await self._rest()
        finally:
            self._is_ending = True
            sweeping.cancel()
            await self._give_back()
            await asyncio.wait([sweeping])  # files and database are closed, and may be another's, after this

    async def _sweep_now_and_then(self) -> None:
        """Apart from the pending pictures, which do not wait until a large store has been looked through."""
        while True:
            try:
                await self._sweep()
            except CirclesError as error:
                logger.warning("nothing is swept away now: %s", error.detail)
            except Exception:
                logger.exception("the sweep stumbled")
            await asyncio.sleep(_SWEEP_PERIOD_S)

    async def _take_up(self, pipeline: ImagePipeline) -> None:
        free = _MAX_AT_ONCE - len(self._in_work)
        if free <= 0:
            return
        settings = self._settings
        # A detection, before and after which bytes are loaded and rows written.
        lease_s = settings.background_timeout_s + 4 * (settings.storage_timeout_s + settings.database_timeout_s)
        for record in await in_thread(self._book.claim_pending, free, lease_s):
            task = asyncio.create_task(self._work_on(pipeline, record))
            self._in_work[task] = record
            task.add_done_callback(self._put_down)
        forgotten = time.monotonic() - _FORGET_SETBACKS_S
        self._setbacks = {key: setback for key, setback in self._setbacks.items() if setback[1] > forgotten}

    async def _work_on(self, pipeline: ImagePipeline, record: ImageRecord) -> None:
        """Finishes the picture, or lets it rest; longer from time to time."""
        try:
            await self._finish(pipeline, record)
        except CirclesError as error:
            logger.warning("image %s stays pending: %s", record.image_id, error.detail)
        except Exception:
            logger.exception("the reconciler stumbled over image %s", record.image_id)
        else:
            self._setbacks.pop(record.image_id, None)
            return
        tries = self._setbacks.get(record.image_id, (0, 0.0))[0] + 1
        rest_s = min(_FIRST_RETRY_S * 2 ** min(tries - 1, _MOST_DOUBLINGS), self._settings.reconcile_period_s)
        self._setbacks[record.image_id] = (tries, time.monotonic() + rest_s)
        await in_thread(self._book.rest, [record], rest_s)

    async def _finish(self, pipeline: ImagePipeline, record: ImageRecord) -> None:
        try:
            await pipeline.finish(record, self._settings.background_timeout_s)
        except (ImageError, DetectionFailedError, NotFoundError) as error:
            # Trying again would end the same way.
            await in_thread(self._book.fail, record, error.detail)
            logger.warning("image %s failed: %s", record.image_id, error.detail)

    def _put_down(self, task: "asyncio.Task[None]") -> None:
        record = self._in_work.pop(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("image %s rests until its lease ends: %s", record.image_id, task.exception())
        self.wake()

    async def _give_back(self) -> None:
        """Ends the work, and lets others take it up at once."""
        in_work = dict(self._in_work)
        for task in in_work:
            task.cancel()
        if not in_work:
            return
        await asyncio.wait(in_work)
        try:
            await in_thread(self._book.rest, list(in_work.values()), 0.0)
        except CirclesError as error:
            logger.warning("pending pictures rest until their leases end: %s", error.detail)

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
        if self._settings.retention_days is not None:
            await self._purge(self._settings.retention_days * _DAY_S)
        removed = await in_thread(self._book.sweep, self._settings.orphan_grace_s, lambda: self._is_ending)
        if removed:
            logger.info("removed %d files that no image names", removed)

    async def _purge(self, age_s: float) -> None:
        """Errors end here: files that no image names are no less in the way."""
        try:
            expired = await in_thread(self._purge_until_ending, age_s)
        except CirclesError as error:
            logger.warning("images whose time is over stay for now: %s", error.detail)
        except Exception:
            logger.exception("the purge stumbled")
        else:
            if expired:
                logger.info("removed %d images whose time was over", expired)

    def _purge_until_ending(self, age_s: float) -> int:
        return sum(1 for _ in itertools.takewhile(lambda _: not self._is_ending, self._book.purge(age_s)))
