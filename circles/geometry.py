"""Circles and boxes: conversions and overlap, in NumPy alone.

Coordinates are floats in px: origin at the image's top-left corner, x to the right, y down, the first pixel's center
at (0.5, 0.5).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BBox:
    """An axis-parallel rectangle."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @property
    def width(self) -> float:
        return self.x_max - self.x_min

    @property
    def height(self) -> float:
        return self.y_max - self.y_min

    @property
    def area(self) -> float:
        return self.width * self.height

    def as_tuple(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max)."""
        return (self.x_min, self.y_min, self.x_max, self.y_max)

    def margin(self, width: float, height: float) -> float:
        """Px from the box to the nearest border of an image of this size; negative where it lies beyond one."""
        return min(self.x_min, self.y_min, width - self.x_max, height - self.y_max)

    def clip(self, width: float, height: float) -> "BBox":
        """The part of the box inside an image of this size; degenerate (zero area) when none is."""
        return BBox(
            min(max(self.x_min, 0.0), float(width)),
            min(max(self.y_min, 0.0), float(height)),
            min(max(self.x_max, 0.0), float(width)),
            min(max(self.y_max, 0.0), float(height)),
        )


@dataclass(frozen=True, slots=True)
class Circle:
    """A circle; the radius is positive."""

    center_x: float
    center_y: float
    radius: float

    def bbox(self) -> BBox:
        """The square around the circle, not clipped to any image."""
        return BBox(
            self.center_x - self.radius,
            self.center_y - self.radius,
            self.center_x + self.radius,
            self.center_y + self.radius,
        )


@dataclass(frozen=True, slots=True)
class Ellipse:
    """A circle seen at an angle: center, half axes, direction (radians) of the first axis; px."""

    center_x: float
    center_y: float
    axis_a: float
    axis_b: float
    angle: float

    def circle(self) -> Circle:
        """The circle of the same center and area."""
        return Circle(self.center_x, self.center_y, float(np.sqrt(self.axis_a * self.axis_b)))

    def bbox(self) -> BBox:
        """The box around the ellipse, not clipped to any image."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        half_width = float(np.hypot(self.axis_a * cosine, self.axis_b * sine))
        half_height = float(np.hypot(self.axis_a * sine, self.axis_b * cosine))
        return BBox(
            self.center_x - half_width,
            self.center_y - half_height,
            self.center_x + half_width,
            self.center_y + half_height,
        )

    def part_outside(self, width: float, height: float) -> float:
        """Part of the ellipse's box, 0 to 1, that an image of this size does not show."""
        bbox = self.bbox()
        return 1 - bbox.clip(width, height).area / bbox.area

    def points(self, count: int) -> FloatArray:
        """(count, 2): points on the rim, evenly spaced by the angle that a circle of it would have."""
        turns = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        along = np.stack([self.axis_a * np.cos(turns), self.axis_b * np.sin(turns)], axis=-1)
        rim: FloatArray = along @ np.array([[cosine, sine], [-sine, cosine]]) + (self.center_x, self.center_y)
        return rim


def pairwise_bbox_iou(bboxes_a: FloatArray, bboxes_b: FloatArray) -> FloatArray:
    """Overlap of every box in one set with every box in another.

    Args:
        bboxes_a: (N, 4), rows of x_min, y_min, x_max, y_max, in px.
        bboxes_b: (M, 4), likewise.

    Returns:
        (N, M) in [0, 1], shared area over joint area; 0 where both areas are 0. Either set may be empty.
    """
    a = bboxes_a.reshape(-1, 1, 4)
    b = bboxes_b.reshape(1, -1, 4)
    shared_sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (N, M, 2)
    shared = np.prod(np.clip(shared_sides, 0.0, None), axis=-1)
    joint = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1) - shared
    ious: FloatArray = np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)
    return ious


def pairwise_circle_iou(circles_a: FloatArray, circles_b: FloatArray) -> FloatArray:
    """Overlap of every circle in one set with every circle in another.

    The shared area is that of a circular lens (Weisstein, "Circle-Circle Intersection", MathWorld, eq. 14).

    Args:
        circles_a: (N, 3), rows of center x, center y, radius, in px.
        circles_b: (M, 3), likewise.

    Returns:
        (N, M) in [0, 1], shared area over joint area. Circles that only touch give 0. Either set may be empty.

    Raises:
        ValueError: A radius is not positive.
    """
    a = circles_a.reshape(-1, 1, 3)
    b = circles_b.reshape(1, -1, 3)
    if np.any(a[..., 2] <= 0) or np.any(b[..., 2] <= 0):
        raise ValueError("every radius must be positive")
    radius_a, radius_b = np.broadcast_arrays(a[..., 2], b[..., 2])  # (N, M)
    distance = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1])
    smaller = np.minimum(radius_a, radius_b)
    # Where one circle lies inside the other the formula divides by zero or leaves arccos' domain: settled apart.
    is_inside = distance <= np.abs(radius_a - radius_b)
    is_apart = distance >= radius_a + radius_b
    safe_distance = np.where(is_inside | is_apart, radius_a + radius_b, distance)
    segment_a = _segment_area(radius_a, (safe_distance**2 + radius_a**2 - radius_b**2) / (2 * safe_distance))
    segment_b = _segment_area(radius_b, (safe_distance**2 + radius_b**2 - radius_a**2) / (2 * safe_distance))
    shared = np.where(is_inside, np.pi * smaller**2, np.where(is_apart, 0.0, segment_a + segment_b))
    joint = np.pi * (radius_a**2 + radius_b**2) - shared
    ious: FloatArray = np.clip(shared / joint, 0.0, 1.0)
    return ious


def _segment_area(radius: FloatArray, chord_distance: FloatArray) -> FloatArray:
    """Area that a chord cuts off a circle, the chord lying at a signed distance from the center."""
    cosine = np.clip(chord_distance / radius, -1.0, 1.0)
    half_chord = np.sqrt(np.clip(radius**2 - chord_distance**2, 0.0, None))
    area: FloatArray = radius**2 * np.arccos(cosine) - chord_distance * half_chord
    return area
