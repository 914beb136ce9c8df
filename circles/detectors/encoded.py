"""A detector for encoded pictures: decoding before it, the score floor after it, and errors kept apart per picture."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from circles.detection import DetectorInfo, ImageDetections
from circles.detectors import load_detector
from circles.detectors.protocol import Detector
from circles.errors import DetectionFailedError, ImageError
from circles.imaging import RGBImage, decode_image
from circles.settings import Settings

logger = logging.getLogger(__name__)

# Decoded pictures are held up to about this size, then detected in, before the next are decoded.
_MAX_BATCH_BYTES = 256 * 2**20

DetectionOutcome = ImageDetections | ImageError | DetectionFailedError
"""What was found in a picture, or what is wrong with it."""


def open_detector(settings: Settings) -> "EncodedDetector":
    """The detector of these settings, with their limits; how many threads this process computes with is set, too.

    Raises:
        WeightsError: The learned detector's weights are absent or damaged.
    """
    # One policy for every library that starts threads of its own: processes are the unit that scales.
    os.environ["OMP_NUM_THREADS"] = str(settings.detector_threads)
    cv2.setNumThreads(settings.detector_threads)
    detector = load_detector(settings.loaded_detector, settings.detector_threads)
    return EncodedDetector(detector, settings.max_image_pixels, settings.store_min_score)


class EncodedDetector:
    """Detects in picture files as they were uploaded. One instance, one thread at a time, like what it wraps."""

    def __init__(self, detector: Detector, max_pixels: int, min_score: float) -> None:
        """
        Args:
            detector: What detects in decoded pictures.
            max_pixels: Larger pictures are refused by their header.
            min_score: Detections below it are dropped.
        """
        self._detector = detector
        self._max_pixels = max_pixels
        self._min_score = min_score

    @property
    def info(self) -> DetectorInfo:
        """Name and version of what detects."""
        return self._detector.info

    def detect(self, files: Sequence[bytes]) -> list[DetectionOutcome]:
        """For every file, in order, what was found in it, or why nothing could be: never an error for all."""
        began = time.perf_counter()
        outcomes: list[DetectionOutcome | None] = [None] * len(files)
        decoding_s = [0.0] * len(files)
        images: dict[int, RGBImage] = {}
        for index, image_bytes in enumerate(files):
            decoding = time.perf_counter()
            decoded = self._decode(image_bytes)
            decoding_s[index] = time.perf_counter() - decoding
            if isinstance(decoded, np.ndarray):
                images[index] = decoded
            else:
                outcomes[index] = decoded
            is_last = index + 1 == len(files)
            if is_last or sum(image.size for image in images.values()) >= _MAX_BATCH_BYTES:
                for place, outcome in zip(images, self._detect_images(list(images.values())), strict=True):
                    outcomes[place] = outcome
                images.clear()
        whole_s = time.perf_counter() - began
        return [
            _timed(outcome, seconds, whole_s)
            for outcome, seconds in zip(outcomes, decoding_s, strict=True)
            if outcome is not None
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _decode(self, image_bytes: bytes) -> RGBImage | ImageError | DetectionFailedError:
        try:
            return decode_image(image_bytes, self._max_pixels)
        except ImageError as error:
            return error
        except MemoryError:
            return DetectionFailedError("there is not enough memory to decode this picture")

    def _detect_images(self, images: Sequence[RGBImage]) -> list[ImageDetections | DetectionFailedError]:
        if not images:
            return []
        began = time.perf_counter()
        try:
            batches = self._detector.detect(images)
        # Whatever a detector stumbles on, it must not cost the other pictures of the batch their answer.
        except Exception as error:
            if len(images) > 1:
                return [result for image in images for result in self._detect_images([image])]
            logger.exception("the detector failed on a picture of shape %s", images[0].shape)
            return [DetectionFailedError(f"the detector failed on this picture: {type(error).__name__}")]
        detecting_s = (time.perf_counter() - began) / len(images)
        return [
            ImageDetections(
                width=image.shape[1],
                height=image.shape[0],
                detector=self._detector.info,
                detections=tuple(detection for detection in detections if detection.score >= self._min_score),
                seconds={"detect": detecting_s},
            )
            for image, detections in zip(images, batches, strict=True)
        ]


def _timed(outcome: DetectionOutcome, decoding_s: float, whole_s: float) -> DetectionOutcome:
    """What the picture itself took, and what it waited for the others of its batch."""
    if not isinstance(outcome, ImageDetections):
        return outcome
    own_s = {"decode": decoding_s, **outcome.seconds}
    return replace(outcome, seconds={**own_s, "batch": max(0.0, whole_s - sum(own_s.values()))})
