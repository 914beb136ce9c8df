"""Detections drawn into pictures, for people."""

from collections.abc import Sequence

import cv2
import numpy as np

from circles.detection import Detection
from circles.imaging import RGBImage

_RED = (230, 30, 30)
_WHITE = (255, 255, 255)
_SHIFT = 4  # OpenCV takes coordinates as fixed-point numbers with this many fractional bits


def draw_detections(image: RGBImage, detections: Sequence[Detection]) -> RGBImage:
    """A copy of the image with every circle, its center and its score; line widths follow the image's size."""
    canvas = np.array(image)  # a copy in any case: the input may be read-only
    thickness = max(1, round(max(image.shape[:2]) / 400))
    for detection in detections:
        circle = detection.circle
        _draw_circle(canvas, circle.center_x, circle.center_y, circle.radius, _WHITE, thickness + 2)
        _draw_circle(canvas, circle.center_x, circle.center_y, circle.radius, _RED, thickness)
        _draw_circle(canvas, circle.center_x, circle.center_y, float(thickness), _RED, cv2.FILLED)
        _draw_label(canvas, f"{detection.score:.2f}", round(circle.center_x), round(circle.center_y), thickness)
    return canvas


def _draw_circle(
    canvas: RGBImage, center_x: float, center_y: float, radius: float, color: tuple[int, int, int], thickness: int
) -> None:
    # OpenCV counts from the first pixel's center, this project from its corner.
    center = (round((center_x - 0.5) * 2**_SHIFT), round((center_y - 0.5) * 2**_SHIFT))
    cv2.circle(canvas, center, max(1, round(radius * 2**_SHIFT)), color, thickness, cv2.LINE_AA, _SHIFT)


def _draw_label(canvas: RGBImage, text: str, x: int, y: int, thickness: int) -> None:
    scale = 0.35 * thickness + 0.15
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    origin = (x - width // 2, y - 2 * thickness - height // 2)
    for color, line_width in ((_WHITE, thickness + 2), (_RED, thickness)):
        cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, color, line_width, cv2.LINE_AA)
