"""A detector for encoded pictures: decoding before it, the score floor after it, and errors kept apart per picture."""

import logging
from collections.abc import Sequence

from circles.detection import ImageDetections
from circles.detectors.protocol import Detector
from circles.errors import DetectionFailedError, ImageError
from circles.imaging import RGBImage, decode_image

logger = logging.getLogger(__name__)

DetectionOutcome = ImageDetections | ImageError | DetectionFailedError
"""What was found in a picture, or what is wrong with it."""


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

    def detect(self, files: Sequence[bytes]) -> list[DetectionOutcome]:
        """For every file, in order, what was found in it, or why nothing could be: never an error for all."""
        images = [self._decode(image_bytes) for image_bytes in files]
        decoded = [image for image in images if not isinstance(image, ImageError)]
        results = iter(self._detect_images(decoded))
        return [image if isinstance(image, ImageError) else next(results) for image in images]

    def _decode(self, image_bytes: bytes) -> RGBImage | ImageError:
        try:
            return decode_image(image_bytes, self._max_pixels)
        except ImageError as error:
            return error

    def _detect_images(self, images: Sequence[RGBImage]) -> list[ImageDetections | DetectionFailedError]:
        if not images:
            return []
        try:
            batches = self._detector.detect(images)
        # Whatever a detector stumbles on, it must not cost the other pictures of the batch their answer.
        except Exception as error:
            if len(images) > 1:
                return [result for image in images for result in self._detect_images([image])]
            logger.exception("the detector failed on a picture of shape %s", images[0].shape)
            return [DetectionFailedError(f"the detector failed on this picture: {type(error).__name__}")]
        return [
            ImageDetections(
                width=image.shape[1],
                height=image.shape[0],
                detector=self._detector.info,
                detections=tuple(detection for detection in detections if detection.score >= self._min_score),
            )
            for image, detections in zip(images, batches, strict=True)
        ]
