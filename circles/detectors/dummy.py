"""Fixed detections, for trying the service out without any detection work."""

from collections.abc import Sequence

from circles.detection import Detection, DetectorInfo
from circles.geometry import Circle
from circles.imaging import RGBImage

# (center x, center y, radius) as parts of the shorter side, from the image's middle; and the score.
_LAYOUT = ((-0.2, -0.2, 0.15, 0.95), (0.2, -0.15, 0.2, 0.9), (0.0, 0.25, 0.1, 0.6))


class DummyDetector:
    """Answers the same three circles for every picture, in proportion to its size."""

    info = DetectorInfo(name="dummy", version="1")

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        return [self._detections(width=image.shape[1], height=image.shape[0]) for image in images]

    def _detections(self, width: int, height: int) -> list[Detection]:
        side = min(width, height)
        detections = []
        for x, y, radius, score in _LAYOUT:
            circle = Circle(width / 2 + x * side, height / 2 + y * side, radius * side)
            detections.append(Detection(circle, circle.bbox().clip(width, height), score))
        return detections
