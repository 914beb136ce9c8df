"""DetectorDeployment: replicas that hold one detector each, and batch what comes in."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ray import serve

from circles.detectors.encoded import DetectionOutcome
from circles.detectors.guarded import GuardedDetector
from circles.settings import Settings


class DetectorDeployment:
    """Answers for encoded pictures. Its options (replicas, queue, batch) are the builder's business."""

    def __init__(self, settings: Settings) -> None:
        self._detector = GuardedDetector(settings)
        # One thread: a detector serves one caller at a time, and the event loop stays free for health checks.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detect")

        @serve.batch(
            max_batch_size=settings.detector_batch_size,
            batch_wait_timeout_s=settings.detector_batch_wait_s,
        )
        async def detect_batch(files: list[bytes]) -> list[DetectionOutcome]:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._detector.detect, files)

        self._detect_batch = detect_batch

    async def detect(self, image_bytes: bytes) -> DetectionOutcome:
        """What was found, or what is wrong with the picture.

        Errors come as values: a raised one would reach the caller with the replica's traceback as its text, and the
        replica's log as if the replica had failed.
        """
        return await self._detect_batch(image_bytes)

    def check_health(self) -> None:
        """Asked by Serve every few seconds; a replica that raises is replaced."""
        self._detector.check()
