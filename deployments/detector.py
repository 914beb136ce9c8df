"""DetectorDeployment: replicas that hold one detector each, and batch what comes in."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
from ray import serve

from circles.detectors import load_detector
from circles.detectors.encoded import DetectionOutcome, EncodedDetector
from circles.settings import Settings


class DetectorDeployment:
    """Answers for encoded pictures. Its options (replicas, queue, batch) are the builder's business."""

    def __init__(self, settings: Settings) -> None:
        # One policy for every library that starts threads of its own: replicas are the unit that scales.
        os.environ["OMP_NUM_THREADS"] = str(settings.detector_threads)
        cv2.setNumThreads(settings.detector_threads)
        self._detector = EncodedDetector(
            load_detector(settings.detector, settings.detector_threads),
            settings.max_image_pixels,
            settings.store_min_score,
        )
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

    def process_id(self) -> int:
        """The replica's process, for those who look after it from outside."""
        return os.getpid()
