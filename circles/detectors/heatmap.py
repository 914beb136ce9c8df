"""The learned detector: a network says for every cell of a picture whether an object's center lies there.

A picture is looked at as a whole, 128 and 448 px wide; where it has more detail and there are small objects (or so many
px that there may be), again in overlapping tiles at twice the scale, and so on. Peaks of the heat map are
objects (Zhou et al., "Objects as Points", 2019). A second, small network then looks at each of them unrolled around its
rim, in the picture's full resolution: where exactly the rim is, and whether it is one.

Whatever a picture shows, its cost is bounded. Where no small thing is sure, only so many tiles are looked at; of
proposals the likeliest are looked at, and of those that look well the best twice. What got no look at its rim is not
answered: a score without it would mean something else. What got but one is, with the rim that this one saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from circles.detection import Detection, DetectorInfo, suppress_duplicates
from circles.detectors.rim import CUT_DOUBTS, DOUBTS, REACHES, fit, unroll
from circles.detectors.runtimes import STRIDE_PX, Array, Runtime
from circles.detectors.tiles import Area, Tile, areas_of, is_seen_whole, tiles
from circles.geometry import BBox, Circle, Ellipse, FloatArray
from circles.imaging import RGBImage

_VIEWS_PX = (128, 448, 896, 1792, 3584)  # longer side of the picture at each level
_GIVEN_LEVELS = 2  # that every picture is looked at in: the first for what fills it, the second for all else
_MAX_SCALE = 2.0  # small pictures are enlarged at most so much
_LARGE_RADIUS_PX = 28.0  # what the first level is asked for
_SMALL_RADIUS_PX = 12.0  # objects below it are looked at again, enlarged
_LARGE_PICTURE_PX = 1500  # pictures from this size on are looked at twice, whatever was found
_MIN_SCORE = 0.1
_MAX_IOU = 0.4
_BORDER_PX = 2.0
_WIDE, _NEAR = range(len(REACHES))
_NEAR_LOOK_FROM = 0.3  # score of the wide look
_STRIP_BATCH = 8  # of strips in one run of the rim network: what its layers say of them stays in the cache

# What one picture may cost, whatever is in it: room enough for 300 objects, small ones among clutter too.
_MAX_TILES = 24  # where no small thing is sure; 1800 x 1200 px have 21
_SURE_HEAT = 0.6  # as the heat map scores it: of many small round things some have more, blocks of noise have less
_MAX_PEAKS = 3000  # of all that a level shows
_MAX_OBJECTS = 1000  # when so many are sure, no finer level is looked at
_WIDE_LOOKS = 128  # proposals looked at together; when none of them may be anything, those with less heat are left
_MAX_NEAR_LOOKS = 400


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
            # Shorter than the proposals where the rest was not worth a look: a score without one is no such score.
            for ellipse, rim_logit, heat_logit in zip(ellipses, rim_logits, heat_logits, strict=False)
        ]
        return [each for each in evidence if each.bbox.width > 0 and each.bbox.height > 0]

    def _propose(self, image: RGBImage) -> list[Detection]:
        """Peaks of the heat map, in px of the picture; best score first, ``_MAX_OBJECTS`` at most."""
        height, width = image.shape[:2]
        found: list[Detection] = []
        small: list[Detection] = []
        tiles_left = _MAX_TILES
        for level, view_px in enumerate(_VIEWS_PX):
            scale = min(view_px / max(width, height), _MAX_SCALE if level < _GIVEN_LEVELS else 1.0)
            areas = _worthwhile(areas_of(width, height, scale), small, scale, tiles_left)
            tiles_left -= len(areas)
            seen = [each for tile in tiles(image, areas, scale) for each in self._look(tile, width, height)]
            if level == 0:
                seen = [each for each in seen if each.circle.radius * scale >= _LARGE_RADIUS_PX]
            found = suppress_duplicates(_best([*found, *seen], _MAX_PEAKS), _MAX_IOU)[:_MAX_OBJECTS]
            if level < _GIVEN_LEVELS - 1:
                continue
            small = [each for each in seen if each.circle.radius * scale < _SMALL_RADIUS_PX]
            is_large = level < _GIVEN_LEVELS and max(width, height) >= _LARGE_PICTURE_PX
            is_full = len(found) == _MAX_OBJECTS and found[-1].score >= _SURE_HEAT
            if scale >= 0.8 or is_full or not (small or is_large):  # no more detail or no more room, or nobody needs it
                break
        return found

    def _look(self, tile: Tile, width: int, height: int) -> list[Detection]:
        """What is seen in a tile, in px of the picture; ``_MAX_OBJECTS`` of the best at most."""
        scores, boxes, circles = _peaks(self._runtime.cells(tile.image))
        area = tile.area
        best = np.flatnonzero(is_seen_whole(area, boxes))[:_MAX_OBJECTS]
        scale_x, scale_y = area.level_width / width, area.level_height / height
        boxes = (boxes[best] + (area.left, area.top, area.left, area.top)) / (scale_x, scale_y, scale_x, scale_y)
        circles = (circles[best] + (area.left, area.top, 0.0)) / (scale_x, scale_y, np.sqrt(scale_x * scale_y))
        detections = [
            Detection(Circle(*circle), BBox(*box).clip(width, height), score)
            for circle, box, score in zip(circles.tolist(), boxes.tolist(), scores[best].tolist(), strict=True)
        ]
        return [each for each in detections if each.bbox.width > 0 and each.bbox.height > 0]


def place_rims(
    runtime: Runtime, image: RGBImage, guesses: Sequence[Ellipse], heat_logits: Sequence[float]
) -> tuple[list[Ellipse], list[float]]:
    """The guesses moved onto their rims, and for each the log-odds that it is a round thing.

    The first look tells best what it is; a nearer one, for the rim alone, is worth it where that looks well. What the
    picture's border cuts is guessed worse, and looked at widely once more before.

    Near looks are for the ``_MAX_NEAR_LOOKS`` best: what is beyond them keeps its score, which comes of the wide look,
    and the rim that this one saw. Guesses are looked at ``_WIDE_LOOKS`` at a time, and no more of them once none of
    these was worth a near look.

    Args:
        heat_logits: Of the guesses, highest first.

    Returns:
        Ellipses and log-odds of the guesses that were looked at: of the first ones, mostly all.
    """
    height, width = image.shape[:2]
    placed: list[Ellipse] = []
    round_logits: list[float] = []
    scores: list[float] = []
    for start in range(0, len(guesses), _WIDE_LOOKS):
        part = slice(start, start + _WIDE_LOOKS)
        ellipses, logits = _place(runtime, image, guesses[part], _WIDE, DOUBTS[_WIDE])
        parts_cut = [ellipse.part_outside(width, height) for ellipse in ellipses]
        part_scores = list(map(runtime.calibration.score, heat_logits[part], logits, parts_cut))
        placed += ellipses
        round_logits += logits
        scores += part_scores
        if max(part_scores) < _NEAR_LOOK_FROM:
            break
    likely = [index for index, score in enumerate(scores) if score >= _NEAR_LOOK_FROM]
    likely = sorted(sorted(likely, key=lambda index: -scores[index])[:_MAX_NEAR_LOOKS])
    cut = [index for index in likely if placed[index].part_outside(width, height) > 0]
    for look, doubts, indexes in ((_WIDE, CUT_DOUBTS, cut), (_NEAR, DOUBTS[_NEAR], likely)):
        again, _ = _place(runtime, image, [placed[index] for index in indexes], look, doubts)
        for index, ellipse in zip(indexes, again, strict=True):
            placed[index] = ellipse
    return [e if _is_sane(e, g) else g for e, g in zip(placed, guesses, strict=False)], round_logits


def _place(
    runtime: Runtime, image: RGBImage, guesses: Sequence[Ellipse], look: int, doubts: Sequence[float]
) -> tuple[list[Ellipse], list[float]]:
    if not guesses:
        return [], []
    strips = unroll(image, guesses, REACHES[look])
    answers = [
        runtime.rims(strips[start : start + _STRIP_BATCH], look) for start in range(0, len(strips), _STRIP_BATCH)
    ]
    rim_logits, round_logits = (np.concatenate(each) for each in zip(*answers, strict=True))
    return fit(guesses, strips, rim_logits, REACHES[look], doubts), round_logits.tolist()


def _guess(proposal: Detection, width: int, height: int) -> Ellipse:
    """The ellipse in the proposed box; its circle, where the picture's border cuts it."""
    bbox, circle = proposal.bbox, proposal.circle
    if bbox.margin(width, height) < _BORDER_PX:
        return Ellipse(circle.center_x, circle.center_y, circle.radius, circle.radius, 0.0)
    return Ellipse((bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2, bbox.width / 2, bbox.height / 2, 0.0)


def _is_sane(ellipse: Ellipse, guess: Ellipse) -> bool:
    """Whether a fit stayed within what it could see."""
    radius = guess.circle().radius
    shift = np.hypot(ellipse.center_x - guess.center_x, ellipse.center_y - guess.center_y)
    return bool(shift < 0.3 * radius and 0.6 < ellipse.circle().radius / radius < 1.6 and ellipse.axis_b > 0.2 * radius)


def _logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def _best(detections: list[Detection], count: int) -> list[Detection]:
    """So many of the best, or all in their given order."""
    if len(detections) <= count:
        return detections
    return sorted(detections, key=lambda detection: -detection.score)[:count]


def _worthwhile(areas: list[Area], small: Sequence[Detection], scale: float, count: int) -> list[Area]:
    """So many of the areas, those with the likeliest of the small things first; with any, once one thing is sure."""
    if len(areas) <= count:
        return areas
    places = np.array([(each.circle.center_x, each.circle.center_y, each.score) for each in small]).reshape(-1, 3)
    x, y, scores = (places * (scale, scale, 1)).T
    worths = []
    for area in areas:
        is_in = (x >= area.left) & (x < area.left + area.width) & (y >= area.top) & (y < area.top + area.height)
        worths.append(float(scores[is_in].max(initial=0.0)))
    if max(worths) >= _SURE_HEAT:
        count = max(count, sum(worth > 0 for worth in worths))
    ranked = sorted(range(len(areas)), key=lambda index: -worths[index])
    return [areas[index] for index in sorted(ranked[: max(count, 0)])]


def _peaks(maps: Array) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scores, boxes (x_min, y_min, x_max, y_max), circles (x, y, radius) of all peaks, best first; px of the tile."""
    heat = maps[0]
    is_peak = (heat >= cv2.dilate(heat, np.ones((3, 3), np.uint8))) & (heat > np.log(_MIN_SCORE / (1 - _MIN_SCORE)))
    rows, columns = np.nonzero(is_peak)
    order = np.argsort(-heat[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    x, y = (columns + 0.5) * STRIDE_PX, (rows + 0.5) * STRIDE_PX
    left, top, right, bottom, offset_x, offset_y, radius = maps[1:, rows, columns].astype(np.float64)
    scores = 1 / (1 + np.exp(-heat[rows, columns].astype(np.float64)))
    boxes = np.column_stack([x - left, y - top, x + right, y + bottom])
    return scores, boxes, np.column_stack([x + offset_x, y + offset_y, radius])
