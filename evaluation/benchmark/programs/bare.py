"""The detector itself, in this process: what every other way is held against, and what the programs here hold.

Only what ``circles`` needs is imported, since some of them run in environments without the rest of the project.
"""

import cv2

from circles.detectors import load_detector
from circles.detectors.encoded import DetectionOutcome, EncodedDetector
from circles.settings import Settings


def bare_detector(threads: int = 1) -> EncodedDetector:
    """The detector of the settings, without any process, thread or queue around it.

    It finds what the service answers by default: what that keeps beyond it, nobody here asks for.
    """
    settings = Settings()
    cv2.setNumThreads(threads)
    detector = load_detector(settings.loaded_detector, threads)
    return EncodedDetector(detector, settings.max_image_pixels, settings.default_min_score)


def answer_of(outcome: DetectionOutcome) -> dict[str, object]:
    """The least that a client needs, as JSON: how many objects there are, and for each its circle, box and score.

    Raises:
        ImageError, DetectionFailedError: The outcome is one.
    """
    if isinstance(outcome, Exception):
        raise outcome
    detections = [
        {
            "label": detection.label,
            "bbox": detection.bbox.as_tuple(),
            "centroid": {"x": detection.circle.center_x, "y": detection.circle.center_y},
            "radius": detection.circle.radius,
            "score": detection.score,
        }
        for detection in outcome.detections
    ]
    return {"width": outcome.width, "height": outcome.height, "count": len(detections), "detections": detections}
