"""DetectorDeployment: replicas that hold one detector each, and batch what comes in."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ray import serve

from circles.detection import ImageDetections
from circles.detectors.encoded import DetectionOutcome
from circles.detectors.guarded import GuardedDetector
from circles.settings import Settings

_File = tuple[float, bytes]
"""When a picture came (``time.perf_counter``), and its bytes."""


class DetectorDeployment:
    """Answers for encoded pictures. Its options (replicas, queue, batch) are the builder's business."""

    def __init__(self, settings: Settings) -> None:
        self._detector = GuardedDetector(settings)
        # One thread: a detector serves one caller at a time, and the event loop stays free for health checks.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detect")
        self._detect: Callable[[_File], Awaitable[DetectionOutcome]] = self._detect_one
        if settings.largest_batch > 1:
            in_batches = serve.batch(
                max_batch_size=settings.largest_batch, batch_wait_timeout_s=settings.detector_batch_wait_s
            )
            self._detect = in_batches(self._detect_batch)

    async def detect(self, image_bytes: bytes) -> DetectionOutcome:
        """What was found, or what is wrong with the picture.

        Errors come as values: a raised one would reach the caller with the replica's traceback as its text, and the
        replica's log as if the replica had failed.
        """
        return await self._detect((time.perf_counter(), image_bytes))

    def check_health(self) -> None:
        """Asked by Serve every few seconds; a replica that raises is replaced."""
        self._detector.check()

    async def _detect_batch(self, files: list[_File]) -> list[DetectionOutcome]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._detect_blocking, files)

    async def _detect_one(self, file: _File) -> DetectionOutcome:
        """Without Serve's batching, which costs half a millisecond also where it makes batches of one."""
        (outcome,) = await self._detect_batch([file])
        return outcome

    def _detect_blocking(self, files: list[_File]) -> list[DetectionOutcome]:
        began = time.perf_counter()
        outcomes = self._detector.detect([image_bytes for _, image_bytes in files])
        whole_s = time.perf_counter() - began
        return [_timed(each, began - came, whole_s) for (came, _), each in zip(files, outcomes, strict=True)]


def _timed(outcome: DetectionOutcome, queue_s: float, whole_s: float) -> DetectionOutcome:
    """With what it waited for its batch, and what the way to the detector's process and back took."""
    if not isinstance(outcome, ImageDetections):
        return outcome
    pipe_s = max(0.0, whole_s - sum(outcome.seconds.values()))
    return replace(outcome, seconds={"queue": queue_s, "pipe": pipe_s, **outcome.seconds})
