"""Detectors that do as they are told."""

import asyncio
import threading
from collections.abc import Sequence

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.detectors.encoded import EncodedDetector
from circles.errors import DetectorUnavailableError
from circles.geometry import Circle
from circles.imaging import RGBImage
from deployments.async_detectors import DetectorState, InProcessDetector


class FixedDetector:
    """Answers the same circles, clipped, for every picture; raises on pictures of one width, if told so."""

    info = DetectorInfo("fixed", "7")

    def __init__(self, *found: tuple[Circle, float], fails_at_width: int | None = None) -> None:
        self._found = found
        self._fails_at_width = fails_at_width
        self.batch_sizes: list[int] = []

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        self.batch_sizes.append(len(images))
        if any(image.shape[1] == self._fails_at_width for image in images):
            raise RuntimeError("told to fail")
        return [
            [
                Detection(circle, circle.bbox().clip(image.shape[1], image.shape[0]), score)
                for circle, score in self._found
            ]
            for image in images
        ]


class BlockedDetector(FixedDetector):
    """Keeps its thread busy until it is released."""

    def __init__(self, *found: tuple[Circle, float]) -> None:
        super().__init__(*found)
        self.has_begun = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        """Answers, now and from now on."""
        self._released.set()

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        found = super().detect(images)
        self.has_begun.set()
        assert self._released.wait(30)
        return found


class GatedDetector:
    """Answers like the one it wraps, while its gate is open; a closed gate keeps callers waiting, an absent detector
    refuses them."""

    def __init__(self, detector: FixedDetector, max_pixels: int = 10**9) -> None:
        self._detector = InProcessDetector(EncodedDetector(detector, max_pixels, min_score=0.1))
        self.versions = self._detector.versions
        self._gate = asyncio.Event()
        self._gate.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_absent = False
        self.calls = 0

    def close_gate(self) -> None:
        """From now on nobody is answered. From any thread."""
        self._gate.clear()

    def open_gate(self) -> None:
        """Answers all who wait. From any thread."""
        if self._loop is None:
            self._gate.set()
        else:
            self._loop.call_soon_threadsafe(self._gate.set)

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        self._loop = asyncio.get_running_loop()
        self.calls += 1
        if self.is_absent:
            raise DetectorUnavailableError("told to be absent")
        await self._gate.wait()
        return await self._detector.detect(image_bytes)

    def state(self) -> DetectorState:
        if self.is_absent:
            raise DetectorUnavailableError("told to be absent")
        return "ok"

    async def close(self) -> None:
        await self._detector.close()
