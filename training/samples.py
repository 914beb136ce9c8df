"""What the network is shown: a square picture, and the outlines of all round things in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.geometry import BBox, Circle
from circles.imaging import RGBImage

Outline = NDArray[np.float64]
"""(K, 2): corners of a polygon, x and y in px, K large enough for a smooth rim."""

CORNERS = 96
_MIN_VISIBLE = 0.3  # objects of which less can be seen are neither asked for nor forbidden
_MIN_SIDE_PX = 4.0


@dataclass(frozen=True, slots=True)
class SampleObject:
    """A round thing: its outline, hidden and cut-off parts included."""

    outline: Outline
    has_rim: bool = True
    """False where only the outline's box is known well: annotated by a box, and seen at an angle or cut."""
    is_exact: bool = True
    """False where the outline was annotated by hand: right to some px."""
    is_whole: bool = True
    """False where the outline is but the box of what its picture's border left of it."""
    hidden: float = 0.0
    """Part of its area that lies under others."""


@dataclass
class Sample:
    """A picture while it is made up: objects later in the list lie upon earlier ones."""

    image: RGBImage
    objects: list[SampleObject] = field(default_factory=list)
    decoys: list[BBox] = field(default_factory=list)
    """Where things are that might be taken for round ones, such as letters."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for at an object: the box of what the picture shows of it, and its circle, if known; px.

    An ignored one is neither asked for nor forbidden.
    """

    bbox: BBox
    circle: Circle | None
    is_ignored: bool


def transform(outline: Outline, matrix: NDArray[np.float64]) -> Outline:
    """The outline seen through a (3, 3) homography."""
    mapped = np.column_stack([outline, np.ones(len(outline))]) @ matrix.T
    result: Outline = mapped[:, :2] / mapped[:, 2:]
    return result


def targets_of(sample: Sample) -> list[Target]:
    """What the network should say of the sample; objects outside the picture are left out."""
    height, width = sample.image.shape[:2]
    targets = []
    for each in sample.objects:
        area = polygon_area(each.outline)
        visible = clip_polygon(each.outline, width, height)
        if len(visible) < 3 or area <= 0:
            continue
        (x_min, y_min), (x_max, y_max) = visible.min(axis=0), visible.max(axis=0)
        bbox = BBox(float(x_min), float(y_min), float(x_max), float(y_max))
        shown = polygon_area(visible) / area * (1 - each.hidden)
        center_x, center_y = _centroid(each.outline)
        targets.append(
            Target(
                bbox=bbox,
                circle=Circle(center_x, center_y, float(np.sqrt(area / np.pi))) if each.has_rim else None,
                is_ignored=shown < _MIN_VISIBLE or min(bbox.width, bbox.height) < _MIN_SIDE_PX,
            )
        )
    return targets


def with_hidden_parts(objects: list[SampleObject], width: int, height: int) -> list[SampleObject]:
    """The objects, each with the part of it that later ones cover."""
    owners = np.full((height, width), -1, np.int16)
    sizes = []
    for index, each in enumerate(objects):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [np.round(each.outline - 0.5).astype(np.int32)], 1)
        is_inside = mask > 0
        owners[is_inside] = index
        sizes.append(max(int(is_inside.sum()), 1))
    seen = np.bincount(owners[owners >= 0], minlength=len(objects))
    return [
        replace(each, hidden=max(each.hidden, 1 - float(count) / size))
        for each, size, count in zip(objects, sizes, seen, strict=True)
    ]


def clip_polygon(outline: Outline, width: float, height: float) -> Outline:
    """The part inside a picture of this size; (0, 2) when there is none.

    Sutherland and Hodgman, "Reentrant polygon clipping", CACM 1974.
    """
    for axis, limit, sign in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        if len(outline) == 0:
            break
        distances = sign * (outline[:, axis] - limit)  # positive inside
        following, following_distances = np.roll(outline, -1, axis=0), np.roll(distances, -1)
        is_inside = distances >= 0
        is_crossing = is_inside != (following_distances >= 0)
        parts = np.where(is_crossing, distances, 0.0) / np.where(is_crossing, distances - following_distances, 1.0)
        crossings = outline + parts[:, None] * (following - outline)
        points = np.stack([outline, crossings], axis=1).reshape(-1, 2)
        outline = points[np.stack([is_inside, is_crossing], axis=1).ravel()]
    return outline


def polygon_area(outline: Outline) -> float:
    """Area inside the polygon, px squared."""
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _centroid(outline: Outline) -> tuple[float, float]:
    """Middle of the polygon's area."""
    origin = outline.mean(axis=0)
    x, y = (outline - origin).T
    cross = x * np.roll(y, -1) - y * np.roll(x, -1)
    area = cross.sum() / 2
    center_x = ((x + np.roll(x, -1)) * cross).sum() / (6 * area)
    center_y = ((y + np.roll(y, -1)) * cross).sum() / (6 * area)
    return float(center_x + origin[0]), float(center_y + origin[1])


def mosaic(quarters: Sequence[Sample], quarter_px: int) -> Sample:
    """Four square samples side by side; what the borders between them cut is not asked for."""
    image = np.zeros((2 * quarter_px, 2 * quarter_px, 3), np.uint8)
    objects = []
    for number, quarter in enumerate(quarters):
        top, left = quarter_px * (number // 2), quarter_px * (number % 2)
        image[top : top + quarter_px, left : left + quarter_px] = quarter.image
        for each in quarter.objects:
            visible = clip_polygon(each.outline, quarter_px, quarter_px)
            if len(visible) < 3:
                continue
            is_cut = len(visible) != len(each.outline) or not np.allclose(visible, each.outline)
            hidden = 1.0 if is_cut else each.hidden
            moved = replace(each, outline=visible + np.array([left, top]), hidden=hidden)
            objects.append(replace(moved, has_rim=each.has_rim and not is_cut, is_whole=each.is_whole and not is_cut))
    return Sample(image, objects)
