"""Made-up samples: round things of every kind upon grounds of every kind, among things that are not round."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.geometry import BBox
from training.samples import Outline, Sample, SampleObject, polygon_area, with_hidden_parts
from training.sprites import SPRITE_PX, SPRITE_SPAN, Pixels, Sprites, distractor_outline, random_color, write_text

_MAX_OVERLAP = 0.25  # part of their joint reach that two things may share
_PLACEMENT_TRIES = 12
_DIRECTIONS = 2048  # of a circle: an eighth of a px at a radius of 40 px


class Collages:
    """Lays sprites and distractors on grounds."""

    def __init__(self, sprites: Sprites) -> None:
        self._sprites = sprites

    def sample(self, side_px: int, rng: np.random.Generator, ground: Sample | None = None) -> Sample:
        """A picture of ``side_px`` x ``side_px``; on a ``ground`` whose objects stay."""
        canvas = (self._sprites.texture(side_px, rng) if ground is None else ground.image).astype(np.float32)
        objects = [] if ground is None else list(ground.objects)
        decoys = [] if ground is None else list(ground.decoys)
        for _ in range(int(rng.integers(0, 7))):
            decoys += self._paint_distractor(canvas, objects, rng)
        if ground is None and rng.random() < 0.12:
            count = 0
        else:
            count = int(np.exp(rng.uniform(0, np.log(40 if ground is None else 8))))
        tilt, direction = rng.uniform(0.45, 1.0) if rng.random() < 0.5 else 1.0, rng.uniform(0, np.pi)
        base = float(np.exp(rng.uniform(*np.log((3.5, 0.42 * side_px)))))
        base = min(base, 0.75 * side_px / np.sqrt(count + 1))
        same_kind = self._sprites.sprite(rng) if rng.random() < 0.3 else None
        for _ in range(count):
            sprite, unit = same_kind or self._sprites.sprite(rng)
            radius = max(3.0, base * float(np.exp(rng.normal(0, 0.25))))
            outline = self._place(unit, radius, tilt, direction, side_px, objects, rng)
            if outline is None:
                continue
            if rng.random() < 0.6:
                _paint_shadow(canvas, outline, radius, rng)
            _paint_sprite(canvas, sprite, unit, outline)
            objects.append(SampleObject(outline))
        image = np.clip(canvas, 0, 255).astype(np.uint8)
        return Sample(image, with_hidden_parts(objects, side_px, side_px), decoys)

    def _place(
        self,
        unit: Outline,
        radius: float,
        tilt: float,
        direction: float,
        side_px: int,
        objects: Sequence[SampleObject],
        rng: np.random.Generator,
    ) -> Outline | None:
        """The unit outline somewhere in the picture where it does not hide too much; None when there is no room."""
        cosine, sine = np.cos(direction), np.sin(direction)
        axes = np.array([[cosine, -sine], [sine, cosine]])
        squeeze = axes @ np.diag([radius, radius * tilt]) @ axes.T
        spin = rng.uniform(0, 2 * np.pi)
        turned = unit @ np.array([[np.cos(spin), np.sin(spin)], [-np.sin(spin), np.cos(spin)]])
        may_overlap = rng.random() < 0.4
        for _ in range(_PLACEMENT_TRIES):
            center = rng.uniform(-0.3 * radius, side_px + 0.3 * radius, 2)
            if all(_leaves_room(center, radius, other.outline, may_overlap=may_overlap) for other in objects):
                outline: Outline = turned @ squeeze.T + center
                return outline
        return None

    def _paint_distractor(
        self, canvas: Pixels, objects: Sequence[SampleObject], rng: np.random.Generator
    ) -> list[BBox]:
        """Something that is not round, where no object is: a polygon, bar, rounded box, slice, star or print.

        Returns:
            Its box, or those of its parts.
        """
        side = canvas.shape[0]
        size = float(np.exp(rng.uniform(np.log(6), np.log(0.5 * side))))
        center = rng.uniform(0, side, 2)
        if not all(_leaves_room(center, size, each.outline, may_overlap=False) for each in objects):
            return []
        outline = distractor_outline(rng)
        angle = rng.uniform(0, 2 * np.pi)
        stretch = np.diag([1.0, rng.uniform(0.4, 1.0)])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        placed = outline @ stretch @ turn.T * size + center
        if rng.random() < 0.3:
            return write_text(
                canvas, (center[0] - size, center[1] + size / 4), rng.uniform(0.2, 1.0) * size, random_color(rng), rng
            )
        if rng.random() < 0.4:
            _paint_shadow(canvas, placed, size, rng)
        texture = self._sprites.texture(SPRITE_PX, rng)
        _paint_sprite(canvas, texture, outline, placed)
        (x_min, y_min), (x_max, y_max) = placed.min(axis=0).tolist(), placed.max(axis=0).tolist()
        return [BBox(x_min, y_min, x_max, y_max)]


def _leaves_room(center: NDArray[np.float64], radius: float, other: Outline, *, may_overlap: bool) -> bool:
    low, high = other.min(axis=0), other.max(axis=0)
    reach = radius + float((high - low).max()) / 2
    distance = float(np.hypot(*(center - (low + high) / 2)))
    return distance > reach * (1 - _MAX_OVERLAP if may_overlap else 1.0)


def _paint_sprite(canvas: Pixels, sprite: Pixels, unit: Outline, outline: Outline) -> None:
    """Lays the sprite, whose ``unit`` outline spans [-1, 1], over the canvas so that it fills the outline."""
    window = _window(canvas, outline, margin_px=1.0)
    if window is None:
        return
    rows, columns = window
    on_canvas = outline - (columns.start, rows.start)
    on_sprite = unit / SPRITE_SPAN + 0.5  # in its sides
    scale = np.sqrt(polygon_area(on_canvas) / polygon_area(on_sprite)) / sprite.shape[0]
    if scale < 0.6:  # shrink by the mean over areas before warping, which would alias
        size = max(4, round(sprite.shape[0] * scale))
        sprite = cv2.resize(sprite, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
    # The affine map between corresponding corners, by least squares: exact, as one is an affine image of the other.
    # OpenCV's pixel centers are whole numbers, this project's lie at halves.
    corners = np.column_stack([on_sprite * sprite.shape[0] - 0.5, np.ones(len(unit))])
    matrix, *_ = np.linalg.lstsq(corners, on_canvas - 0.5, rcond=None)
    area = canvas[rows, columns]
    warped = cv2.warpAffine(sprite, matrix.T, (area.shape[1], area.shape[0]), borderMode=cv2.BORDER_REPLICATE)
    coverage = _coverage(area, on_canvas)
    area += coverage[..., None] * (warped - area)


def _paint_shadow(canvas: Pixels, outline: Outline, size: float, rng: np.random.Generator) -> None:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.15) * size
    shadow = outline + length * np.array([np.cos(angle), np.sin(angle)])
    softness = float(rng.uniform(0.02, 0.12) * size + 0.5)
    window = _window(canvas, shadow, margin_px=3 * softness)
    if window is None:
        return
    area = canvas[window]
    coverage = _coverage(area, shadow - (window[1].start, window[0].start))
    coverage = cv2.GaussianBlur(coverage, (0, 0), softness).astype(np.float32)
    area *= 1 - np.float32(rng.uniform(0.1, 0.7)) * coverage[..., None]


def _window(canvas: Pixels, outline: Outline, margin_px: float) -> tuple[slice, slice] | None:
    low = np.maximum(np.floor(outline.min(axis=0) - margin_px).astype(int), 0)
    high = np.minimum(np.ceil(outline.max(axis=0) + margin_px).astype(int), (canvas.shape[1], canvas.shape[0]))
    if np.any(high <= low):
        return None
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _coverage(area: Pixels, outline: Outline) -> NDArray[np.float32]:
    """Part of each px inside the outline, (rows, columns) in [0, 1]; every ray from its middle crosses it but once.

    OpenCV's anti-aliased polygons are two thirds of a px too large, so the distance along the ray is taken, less the
    slant at which the ray meets the outline.
    """
    middle = outline.mean(axis=0)
    x, y = (outline - middle).T
    angles, radii = np.arctan2(y, x), np.hypot(x, y)
    grid = np.linspace(-np.pi, np.pi, _DIRECTIONS + 1)
    rim = np.interp(grid, angles, radii, period=2 * np.pi)
    slant = rim / np.hypot(rim, np.gradient(rim, grid))
    ys, xs = np.mgrid[0 : area.shape[0], 0 : area.shape[1]].astype(np.float32) + np.float32(0.5)
    xs, ys = xs - np.float32(middle[0]), ys - np.float32(middle[1])
    distances, directions = cv2.cartToPolar(xs, ys)
    nearest = np.asarray((directions * (_DIRECTIONS / (2 * np.pi)) + _DIRECTIONS / 2).astype(np.int32)) % _DIRECTIONS
    outside = (distances - rim.astype(np.float32)[nearest]) * slant.astype(np.float32)[nearest]
    coverage: NDArray[np.float32] = np.clip(0.5 - outside, 0.0, 1.0).astype(np.float32)
    return coverage
