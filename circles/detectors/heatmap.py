"""The learned detector: a network says for every cell of a picture whether an object's center lies there.

A picture is looked at as a whole, 128 and 448 px wide; where it has more detail and there are small objects (or so many
px that there may be), again in overlapping tiles at twice the scale, and so on. Peaks of the heat map are
objects (Zhou et al., "Objects as Points", 2019). A second, small network then looks at each of them unrolled around its
rim, in the picture's full resolution: where exactly the rim is, and whether it is one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.detection import Detection, DetectorInfo, suppress_duplicates
from circles.detectors.rim import REACHES, fit, unroll
from circles.detectors.runtimes import LEAST_SIDE_PX, SIZE_MULTIPLE_PX, STRIDE_PX, Array, Runtime
from circles.geometry import BBox, Circle, Ellipse
from circles.imaging import RGBImage

_VIEWS_PX = (128, 448, 896, 1792, 3584)  # longer side of the picture at each level
_GIVEN_LEVELS = 2  # that every picture is looked at in: the first for what fills it, the second for all else
_TILE_PX = 512
_MAX_SCALE = 2.0  # small pictures are enlarged at most so much
_PADDING = 127  # grey, as in training
_LARGE_RADIUS_PX = 28.0  # what the first level is asked for
_OVERLAP_PX = 128  # of tiles; objects wider than that are the coarser levels' business
_SMALL_RADIUS_PX = 12.0  # objects below it are looked at again, enlarged
_LARGE_PICTURE_PX = 1500  # pictures from this size on are looked at twice, whatever was found
_MIN_SCORE = 0.1
_MAX_OBJECTS = 1000
_MAX_IOU = 0.4
_BORDER_PX = 2.0
_WIDE, _NEAR = range(len(REACHES))
_NEAR_LOOK_FROM = 0.3  # score of the wide look
_STRIP_BATCH = 64  # of things placed at once: some 10 MB of the network's working memory


@dataclass(frozen=True, slots=True)
class _Tile:
    """A part of the picture as the network sees it: its corner at this level, and which of its sides are cuts."""

    image: RGBImage
    left: int
    top: int
    width: int
    height: int
    level_width: int
    level_height: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What may be an object: its rim and its box in the picture, and what speaks for it."""

    ellipse: Ellipse
    bbox: BBox
    heat_logit: float
    """The heat-map network's log-odds that it is one."""
    rim_logit: float
    """The rim network's."""
    part_cut: float
    """Part of it, 0 to 1, that lies beyond the picture's border."""


class HeatmapDetector:
    """Finds circles by what two networks learned from photographs and drawings."""

    def __init__(self, runtime: Runtime, *, places_rims: bool = True) -> None:
        """
        Args:
            places_rims: Whether the rim network has its say; without it, the heat map's boxes and scores are answered.
        """
        self.info = DetectorInfo(name="heatmap", version=runtime.version)
        self._runtime = runtime
        self._places_rims = places_rims

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: RGBImage) -> list[Detection]:
        if not self._places_rims:
            return self._propose(image)
        calibration = self._runtime.calibration
        detections = [
            Detection(
                each.ellipse.circle(), each.bbox, calibration.score(each.heat_logit, each.rim_logit, each.part_cut)
            )
            for each in self.evidence(image)
        ]
        return suppress_duplicates(detections, _MAX_IOU)

    def evidence(self, image: RGBImage) -> list[Evidence]:
        """All that may be an object, and what the networks say of it; before duplicates are removed."""
        height, width = image.shape[:2]
        proposals = self._propose(image)
        guesses = [_guess(proposal, width, height) for proposal in proposals]
        heat_logits = [_logit(proposal.score) for proposal in proposals]
        ellipses, rim_logits = place_rims(self._runtime, image, guesses, heat_logits)
        evidence = [
            Evidence(
                ellipse,
                ellipse.bbox().clip(width, height),
                heat_logit,
                rim_logit,
                ellipse.part_outside(width, height),
            )
            for ellipse, heat_logit, rim_logit in zip(ellipses, heat_logits, rim_logits, strict=True)
        ]
        return [each for each in evidence if each.bbox.width > 0 and each.bbox.height > 0]

    def _propose(self, image: RGBImage) -> list[Detection]:
        """Peaks of the heat map, in px of the picture."""
        height, width = image.shape[:2]
        found: list[Detection] = []
        for level, view_px in enumerate(_VIEWS_PX):
            scale = min(view_px / max(width, height), _MAX_SCALE if level < _GIVEN_LEVELS else 1.0)
            seen = [each for tile in _tiles(image, scale) for each in self._look(tile, scale, width, height)]
            if level == 0:
                seen = [each for each in seen if each.circle.radius * scale >= _LARGE_RADIUS_PX]
            found = suppress_duplicates([*found, *seen], _MAX_IOU)[:_MAX_OBJECTS]
            if level < _GIVEN_LEVELS - 1:
                continue
            has_small = any(each.circle.radius * scale < _SMALL_RADIUS_PX for each in seen)
            is_large = level < _GIVEN_LEVELS and max(width, height) >= _LARGE_PICTURE_PX
            if scale >= 0.8 or not (has_small or is_large):  # no more detail, or nobody who needs it
                break
        return found

    def _look(self, tile: _Tile, scale: float, width: int, height: int) -> Iterator[Detection]:
        """What is seen in a tile, in px of the picture."""
        maps = self._runtime.cells(tile.image)
        offset = np.array([tile.left, tile.top])
        for score, box, circle in _peaks(maps):
            x_min, y_min, x_max, y_max = box
            is_in_tile = x_min < tile.width and y_min < tile.height and x_max > 0 and y_max > 0
            if not is_in_tile or _is_cut(tile, box):
                continue
            bbox = BBox(*((box.reshape(2, 2) + offset) / scale).ravel().tolist()).clip(width, height)
            if bbox.width > 0 and bbox.height > 0:
                center_x, center_y = ((circle[:2] + offset) / scale).tolist()
                yield Detection(Circle(center_x, center_y, float(circle[2]) / scale), bbox, score)


def place_rims(
    runtime: Runtime, image: RGBImage, guesses: Sequence[Ellipse], heat_logits: Sequence[float]
) -> tuple[list[Ellipse], list[float]]:
    """The guesses moved onto their rims, and for each the log-odds that it is a round thing.

    The first look tells best what it is; a nearer one, for the rim alone, is worth it where that looks well. What the
    picture's border cuts is guessed worse, and looked at widely once more before.
    """
    height, width = image.shape[:2]
    placed, round_logits = _place(runtime, image, guesses, _WIDE)
    parts_cut = [ellipse.part_outside(width, height) for ellipse in placed]
    scores = map(runtime.calibration.score, heat_logits, round_logits, parts_cut)
    likely = [index for index, score in enumerate(scores) if score >= _NEAR_LOOK_FROM]
    for look, indexes in ((_WIDE, [index for index in likely if parts_cut[index] > 0]), (_NEAR, likely)):
        again, _ = _place(runtime, image, [placed[index] for index in indexes], look)
        for index, ellipse in zip(indexes, again, strict=True):
            placed[index] = ellipse
    is_sane = [_is_sane(ellipse, guess) for ellipse, guess in zip(placed, guesses, strict=True)]
    return [e if sane else g for e, g, sane in zip(placed, guesses, is_sane, strict=True)], round_logits


def _place(
    runtime: Runtime, image: RGBImage, guesses: Sequence[Ellipse], look: int
) -> tuple[list[Ellipse], list[float]]:
    placed: list[Ellipse] = []
    round_logits: list[float] = []
    for start in range(0, len(guesses), _STRIP_BATCH):
        part = guesses[start : start + _STRIP_BATCH]
        rim_logits, rounds = runtime.rims(unroll(image, part, REACHES[look]), look)
        placed += fit(part, rim_logits, look)
        round_logits += rounds.tolist()
    return placed, round_logits


def _guess(proposal: Detection, width: int, height: int) -> Ellipse:
    """The ellipse in the proposed box; its circle, where the picture's border cuts it."""
    bbox, circle = proposal.bbox, proposal.circle
    if min(bbox.x_min, bbox.y_min, width - bbox.x_max, height - bbox.y_max) < _BORDER_PX:
        return Ellipse(circle.center_x, circle.center_y, circle.radius, circle.radius, 0.0)
    return Ellipse((bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2, bbox.width / 2, bbox.height / 2, 0.0)


def _is_sane(ellipse: Ellipse, guess: Ellipse) -> bool:
    """Whether a fit stayed within what it could see."""
    radius = guess.circle().radius
    shift = np.hypot(ellipse.center_x - guess.center_x, ellipse.center_y - guess.center_y)
    return bool(shift < 0.3 * radius and 0.6 < ellipse.circle().radius / radius < 1.6 and ellipse.axis_b > 0.2 * radius)


def _logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def _tiles(image: RGBImage, scale: float) -> Iterator[_Tile]:
    """The picture at this scale, in parts of at most ``_TILE_PX``, padded to what the network takes."""
    height, width = image.shape[:2]
    level_width, level_height = max(1, round(width * scale)), max(1, round(height * scale))
    if scale != 1.0:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (level_width, level_height), interpolation=interpolation).astype(np.uint8, copy=False)
    for top, tile_height in _spans(level_height):
        for left, tile_width in _spans(level_width):
            part = image[top : top + tile_height, left : left + tile_width]
            below, beside = _missing(tile_height), _missing(tile_width)
            padded = np.pad(part, ((0, below), (0, beside), (0, 0)), constant_values=_PADDING)
            yield _Tile(padded, left, top, tile_width, tile_height, level_width, level_height)


def _missing(length: int) -> int:
    """Px from a side to the next that the network takes."""
    return max(-length % SIZE_MULTIPLE_PX, LEAST_SIDE_PX - length)


def _spans(length: int) -> list[tuple[int, int]]:
    """Starts and lengths of the fewest overlapping tiles along one side."""
    if length <= _TILE_PX:
        return [(0, length)]
    count = -(-(length - _OVERLAP_PX) // (_TILE_PX - _OVERLAP_PX))
    starts = np.linspace(0, length - _TILE_PX, count).round().astype(int)
    return [(int(start), _TILE_PX) for start in starts]


def _is_cut(tile: _Tile, box: NDArray[np.float32]) -> bool:
    """Whether an inner border of the tile runs through the box, so that another tile or level sees it whole."""
    x_min, y_min, x_max, y_max = box
    margin = 2.0
    return bool(
        (tile.left > 0 and x_min < margin)
        or (tile.top > 0 and y_min < margin)
        or (tile.left + tile.width < tile.level_width and x_max > tile.width - margin)
        or (tile.top + tile.height < tile.level_height and y_max > tile.height - margin)
    )


def _peaks(maps: Array) -> Iterator[tuple[float, NDArray[np.float32], NDArray[np.float32]]]:
    """Score, box (x_min, y_min, x_max, y_max) and circle (x, y, radius) of every peak; px of the tile."""
    heat = maps[0]
    is_peak = (heat >= cv2.dilate(heat, np.ones((3, 3), np.uint8))) & (heat > np.log(_MIN_SCORE / (1 - _MIN_SCORE)))
    rows, columns = np.nonzero(is_peak)
    for row, column in zip(rows, columns, strict=True):
        x, y = (column + 0.5) * STRIDE_PX, (row + 0.5) * STRIDE_PX
        left, top, right, bottom, offset_x, offset_y, radius = maps[1:, row, column]
        score = float(1 / (1 + np.exp(-heat[row, column])))
        yield (
            score,
            np.array([x - left, y - top, x + right, y + bottom], np.float32),
            np.array([x + offset_x, y + offset_y, radius], np.float32),
        )
