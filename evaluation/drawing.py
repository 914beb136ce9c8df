"""Judged pictures: predictions in red with their scores, truth in green, missed truth dashed."""

import cv2
import numpy as np

from circles.geometry import BBox
from circles.imaging import RGBImage
from evaluation.coco import outline
from evaluation.scores import ImageResult, ImageScores, objects

_RED = (225, 35, 35)
_GREEN = (20, 160, 60)
_WHITE = (255, 255, 255)
_DASH_DEGREES = 12
_SHIFT = 4  # OpenCV takes coordinates as fixed-point numbers with this many fractional bits


def draw_judged(image: RGBImage, result: ImageResult, scores: ImageScores) -> RGBImage:
    """A copy of the picture with what was found and what is annotated, each by its outline."""
    canvas = np.array(image)
    height, width = image.shape[:2]
    thickness = max(1, round(max(height, width) / 350))
    found = {match.truth_index for match in scores.matches}
    for index, truth in enumerate(objects(result.image)):
        ellipse = outline(truth.bbox, truth.circle, width, height)
        _draw_ellipse(canvas, ellipse, _GREEN, thickness + 1, is_dashed=index not in found)
    for detection in scores.kept:
        ellipse = outline(detection.bbox, detection.circle, width, height)
        _draw_ellipse(canvas, ellipse, _RED, thickness, is_dashed=False)
        _draw_score(canvas, detection.bbox, detection.score, thickness)
    return canvas


def _draw_ellipse(
    canvas: RGBImage,
    ellipse: tuple[float, float, float, float],
    color: tuple[int, int, int],
    thickness: int,
    *,
    is_dashed: bool,
) -> None:
    # OpenCV counts from the first pixel's center, this project from its corner.
    center = (round((ellipse[0] - 0.5) * 2**_SHIFT), round((ellipse[1] - 0.5) * 2**_SHIFT))
    axes = (max(1, round(ellipse[2] * 2**_SHIFT)), max(1, round(ellipse[3] * 2**_SHIFT)))
    arcs = [(start, start + _DASH_DEGREES) for start in range(0, 360, 2 * _DASH_DEGREES)] if is_dashed else [(0, 360)]
    for start, end in arcs:
        cv2.ellipse(canvas, center, axes, 0, start, end, color, thickness, cv2.LINE_AA, _SHIFT)


def _draw_score(canvas: RGBImage, bbox: BBox, score: float, thickness: int) -> None:
    origin = (max(0, round(bbox.x_min) + 2), max(14, round(bbox.y_min) + 14 * thickness))
    for color, width in ((_WHITE, 3 * thickness), (_RED, thickness)):
        cv2.putText(
            canvas, f"{score:.2f}", origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * thickness, color, width, cv2.LINE_AA
        )
