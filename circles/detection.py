"""Detections: what a detector says of one picture, and how duplicates among them are removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from circles.geometry import BBox, Circle, FloatArray, pairwise_circle_iou


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object. The bbox lies inside the image; the circle may reach beyond it."""

    circle: Circle
    bbox: BBox
    score: float
    label: str = "circle"


@dataclass(frozen=True, slots=True)
class DetectorInfo:
    """Which detector, and which version of it, made a detection."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """What one detector found in one picture, best score first; width and height in px, upright."""

    width: int
    height: int
    detector: DetectorInfo
    detections: tuple[Detection, ...]
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Where the time went, by stage."""


def circles_array(circles: Sequence[Circle]) -> FloatArray:
    """(N, 3) rows of center x, center y, radius."""
    return np.array([(c.center_x, c.center_y, c.radius) for c in circles], dtype=np.float64).reshape(-1, 3)


def bboxes_array(bboxes: Sequence[BBox]) -> FloatArray:
    """(N, 4) rows of x_min, y_min, x_max, y_max."""
    return np.array([b.as_tuple() for b in bboxes], dtype=np.float64).reshape(-1, 4)


def suppress_duplicates(detections: Sequence[Detection], max_iou: float) -> list[Detection]:
    """Greedy non-maximum suppression: of circles that overlap by more than ``max_iou`` only the best stays.

    Returns:
        The survivors, best score first. Ties keep their given order.
    """
    ranked = sorted(detections, key=lambda detection: -detection.score)
    circles = circles_array([detection.circle for detection in ranked])
    is_kept = np.ones(len(ranked), dtype=bool)
    for index, circle in enumerate(circles):
        if is_kept[index]:
            # Only those that may touch it: all overlaps with all would take memory by the square of their number.
            others = circles[index + 1 :]
            apart = np.abs(others[:, :2] - circle[:2]).max(axis=1, initial=0.0)
            near = index + 1 + np.flatnonzero(is_kept[index + 1 :] & (apart < others[:, 2] + circle[2]))
            if near.size:
                is_kept[near[pairwise_circle_iou(circle, circles[near])[0] > max_iou]] = False
    return [ranked[index] for index in np.flatnonzero(is_kept)]
