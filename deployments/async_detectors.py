"""Who answers when somebody wants a picture looked at: others elsewhere, or this very process."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

from circles.detection import ImageDetections
from circles.detectors.encoded import DetectionOutcome, EncodedDetector
from circles.detectors.guarded import GuardedDetector
from circles.errors import DetectorUnavailableError

_CLOSED = "the detector has been unloaded"

DetectorState = Literal["ok", "asleep"]


class AsyncDetector(Protocol):
    """Detects in encoded pictures, one a call, many calls at once."""

    @property
    def versions(self) -> list[str]:
        """The one version that answers, or none while it is not known."""

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        """What is in the picture.

        Raises:
            ImageError: The picture is at fault.
            DetectionFailedError: The detector stumbled over this picture.
            DetectorUnavailableError: Nobody can answer just now.
        """

    def state(self) -> DetectorState:
        """Whether somebody could answer; blocks, and wakes nobody.

        Raises:
            DetectorUnavailableError: Nobody could.
        """

    async def close(self) -> None:
        """Gives back what it holds; nobody is answered any more."""


class InProcessDetector:
    """Detects in a thread of this process; what comes in meanwhile is the next batch. For one event loop."""

    def __init__(self, detector: EncodedDetector | GuardedDetector, batch_size: int = 1) -> None:
        """
        Args:
            batch_size: Most pictures detected in one call.
        """
        self.versions = [detector.info.version]
        self._detector = detector
        self._batch_size = batch_size
        self._waiting: deque[tuple[bytes, asyncio.Future[DetectionOutcome]]] = deque()
        self._is_busy = False
        self._is_closed = False
        # One thread: a detector serves one caller at a time.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detect")

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        if self._is_closed:
            raise DetectorUnavailableError(_CLOSED)
        outcome: asyncio.Future[DetectionOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((image_bytes, outcome))
        self._start_batch()
        return found_in(await outcome)

    def state(self) -> DetectorState:
        return "ok"

    async def close(self) -> None:
        self._is_closed = True
        while self._waiting:
            _, outcome = self._waiting.popleft()
            if not outcome.done():
                outcome.set_exception(DetectorUnavailableError(_CLOSED))
        self._executor.submit(self._detector.close)  # after the batch in work, which is still answered
        self._executor.shutdown(wait=False)

    def _start_batch(self) -> None:
        if self._is_busy:
            return
        batch: list[tuple[bytes, asyncio.Future[DetectionOutcome]]] = []
        while self._waiting and len(batch) < self._batch_size:
            image_bytes, outcome = self._waiting.popleft()
            if not outcome.done():  # else its caller has gone away
                batch.append((image_bytes, outcome))
        if not batch:
            return
        self._is_busy = True
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, self._detector.detect, [image_bytes for image_bytes, _ in batch]
        )
        work.add_done_callback(lambda done: self._finish_batch(done, [outcome for _, outcome in batch]))

    def _finish_batch(
        self, done: "asyncio.Future[list[DetectionOutcome]]", outcomes: "list[asyncio.Future[DetectionOutcome]]"
    ) -> None:
        self._is_busy = False
        error = done.exception()
        for index, outcome in enumerate(outcomes):
            if outcome.done():
                continue
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(done.result()[index])
        self._start_batch()


async def detect_in_time(detector: AsyncDetector, image_bytes: bytes, timeout_s: float) -> ImageDetections:
    """What the detector finds, if it does within this time; raises as ``AsyncDetector.detect``."""
    try:
        async with asyncio.timeout(timeout_s):
            return await detector.detect(image_bytes)
    except TimeoutError as error:
        raise DetectorUnavailableError(f"no detector answered within {timeout_s:g} s") from error


def found_in(outcome: DetectionOutcome) -> ImageDetections:
    """What was found; raises what is wrong with the picture instead."""
    if isinstance(outcome, ImageDetections):
        return outcome
    raise outcome
