"""The classical detector: circular Hough voting on several scales, every candidate judged by the edge under its rim.

OpenCV's ``HOUGH_GRADIENT_ALT`` proposes circles. For each proposal the picture is unrolled along rays from its center,
the strongest edge near the rim is looked up on every ray, and an ellipse is fitted to those edge points (Fitzgibbon et
al., "Direct Least Square Fitting of Ellipses", PAMI 1999, as OpenCV implements it). The score is the part of the rim
that such an edge supports; the box is the ellipse's, so tilted coins get boxes that are not square.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.detection import Detection, DetectorInfo, suppress_duplicates
from circles.geometry import BBox, Circle, Ellipse
from circles.imaging import RGBImage

_Grey = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class HoughParameters:
    """What was tuned, on the training photographs alone; lengths in px of the resized picture unless said otherwise."""

    long_sides_px: tuple[int, ...] = (200, 400, 800)
    blur_px: int = 3
    edge_threshold: float = 250.0  # of HoughCircles' inner Canny, on Scharr gradients
    perfectness: float = 0.75  # HOUGH_GRADIENT_ALT's own measure of a proposal
    min_radius: float = 0.03  # part of the longer side
    max_radius: float = 0.5  # part of the longer side
    ray_count: int = 96
    ray_reach: float = 0.3  # how far from the rim an edge is looked for, part of the radius
    min_edge: float = 8.0  # grey levels per px along the ray
    rim_tolerance: float = 0.04  # how far an edge may lie from the fitted ellipse, part of the radius
    max_iou: float = 0.2  # circles that overlap by more are duplicates


class HoughDetector:
    """Finds circles by their edges alone; nothing is learned, so any round thing will do."""

    info = DetectorInfo(name="hough", version="1")

    def __init__(self, parameters: HoughParameters = HoughParameters()) -> None:
        self._parameters = parameters
        angles = np.linspace(0.0, 2 * np.pi, parameters.ray_count, endpoint=False)
        self._directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # (rays, 2)

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: RGBImage) -> list[Detection]:
        height, width = image.shape[:2]
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
        detections: list[Detection] = []
        # Of a small picture several come out the same, by the limit.
        for scale in sorted({min(side_px / max(width, height), 2.0) for side_px in self._parameters.long_sides_px}):
            if min(width, height) * scale < 8:  # too thin for HoughCircles' gradient kernels to say anything
                continue
            resized = _resize(grey, scale)
            blurred = cv2.medianBlur(resized, self._parameters.blur_px).astype(np.uint8, copy=False)
            for proposal in self._propose(blurred):
                detection = self._judge(blurred, proposal, scale, width, height)
                if detection is not None:
                    detections.append(detection)
        return suppress_duplicates(detections, self._parameters.max_iou)

    def _propose(self, grey: _Grey) -> list[Circle]:
        parameters = self._parameters
        long_side = max(grey.shape)
        proposals = cv2.HoughCircles(
            grey,
            cv2.HOUGH_GRADIENT_ALT,
            dp=1.5,
            minDist=max(4.0, parameters.min_radius * long_side),
            param1=parameters.edge_threshold,
            param2=parameters.perfectness,
            minRadius=max(4, round(parameters.min_radius * long_side)),
            maxRadius=max(5, round(parameters.max_radius * long_side)),
        )
        if proposals is None:
            return []
        # OpenCV counts from the first pixel's center, this project from its corner.
        return [Circle(float(x) + 0.5, float(y) + 0.5, float(radius)) for x, y, radius in proposals.reshape(-1, 3)]

    def _judge(self, grey: _Grey, proposal: Circle, scale: float, width: int, height: int) -> Detection | None:
        """The proposal moved onto the edge under its rim and scored; None when no edge is there.

        ``proposal`` is in px of ``grey``, which is the picture of ``width`` x ``height`` px resized by ``scale``.
        """
        points, strengths, is_inside = self._rim_edges(grey, proposal)
        is_edge = (strengths >= self._parameters.min_edge) & is_inside
        if is_edge.sum() < 8:
            return None
        ellipse = _fit_ellipse(points[is_edge])
        if ellipse is None:
            return None
        distances = np.abs(_radial_distances(ellipse, points))
        tolerance = max(self._parameters.rim_tolerance * ellipse.circle().radius, 1.0)
        is_support = is_edge & (distances <= tolerance)
        if is_support.sum() < 8:
            return None
        ellipse = _fit_ellipse(points[is_support]) or ellipse
        # Rays that leave the picture say nothing for or against a circle cut by its border.
        score = float(is_support.sum() / max(is_inside.sum(), self._parameters.ray_count / 4))
        circle, bbox = ellipse.circle(), ellipse.bbox()
        bbox = BBox(*(value / scale for value in bbox.as_tuple())).clip(width, height)
        if bbox.width <= 0 or bbox.height <= 0:
            return None
        circle = Circle(circle.center_x / scale, circle.center_y / scale, circle.radius / scale)
        return Detection(circle, bbox, score=min(score, 1.0))

    def _rim_edges(
        self, grey: _Grey, circle: Circle
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """The strongest edge on every ray near the rim.

        Returns:
            (rays, 2) its place; (rays,) its strength in grey levels per px; (rays,) whether the rim lies inside the
            picture there.
        """
        reach = max(self._parameters.ray_reach * circle.radius, 3.0)
        step_count = int(2 * reach) + 1
        radii = circle.radius + np.linspace(-reach, reach, step_count)  # (steps,)
        center = np.array([circle.center_x, circle.center_y])
        places = center + radii[None, :, None] * self._directions[:, None, :]  # (rays, steps, 2)
        columns, rows = np.moveaxis(places.astype(np.float32) - 0.5, -1, 0)  # OpenCV's pixel centers are whole numbers
        samples = cv2.remap(grey, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # (rays, steps)
        gradients = np.abs(np.gradient(samples.astype(np.float64), radii, axis=1))
        # An edge near the proposed rim is likelier the right one than an equal edge further off.
        weights = np.exp(-0.5 * ((radii - circle.radius) / reach) ** 2)
        best = np.argmax(gradients * weights, axis=1)
        rays = np.arange(len(best))
        rim = center + circle.radius * self._directions
        height, width = grey.shape
        is_inside = (rim[:, 0] >= 1) & (rim[:, 0] <= width - 1) & (rim[:, 1] >= 1) & (rim[:, 1] <= height - 1)
        return places[rays, best], gradients[rays, best], is_inside


def _radial_distances(ellipse: Ellipse, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) signed distance of points (N, 2) from the rim, measured along the ray from the center."""
    offset = points - (ellipse.center_x, ellipse.center_y)
    cosine, sine = np.cos(ellipse.angle), np.sin(ellipse.angle)
    along = offset @ np.array([[cosine, -sine], [sine, cosine]]) / (ellipse.axis_a, ellipse.axis_b)
    distance = np.hypot(offset[:, 0], offset[:, 1])
    signed: NDArray[np.float64] = distance - distance / np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)
    return signed


def _fit_ellipse(points: NDArray[np.float64]) -> Ellipse | None:
    """The ellipse through (N, 2) points, N at least 8; None when they do not lie on one of a sane shape."""
    (center_x, center_y), axes, degrees = cv2.fitEllipseDirect(points.astype(np.float32))
    half_axes = (axes[0] / 2, axes[1] / 2)
    if not np.all(np.isfinite([center_x, center_y, *half_axes])) or min(half_axes) < 2:
        return None
    if min(half_axes) < 0.4 * max(half_axes):
        return None
    return Ellipse(center_x, center_y, *half_axes, float(np.deg2rad(degrees)))


def _resize(grey: _Grey, scale: float) -> _Grey:
    if scale == 1.0:
        return grey
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(grey, None, fx=scale, fy=scale, interpolation=interpolation).astype(np.uint8, copy=False)
