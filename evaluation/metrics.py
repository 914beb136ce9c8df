"""Matching of detections with truth, and the scores that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from circles.detection import bboxes_array
from circles.geometry import BBox, pairwise_bbox_iou


@dataclass(frozen=True, slots=True)
class Match:
    """One detection paired with one truth, both by index, and how well they overlap."""

    detection_index: int
    truth_index: int
    iou: float


@dataclass(frozen=True, slots=True)
class Counts:
    """True positives, false positives and false negatives, over any number of images."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def precision(self) -> float:
        """Part of the detections that are right; 1 when there are none."""
        return _part(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Part of the truth that was found; 1 when there is none."""
        return _part(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 when there was nothing to find and nothing was found."""
        return _part(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def match_bboxes(detections: Sequence[BBox], truth: Sequence[BBox], min_iou: float) -> list[Match]:
    """The assignment of detections to truth with the greatest total IoU, less the pairs below ``min_iou``.

    Hungarian assignment (Kuhn 1955) on 1 - IoU; every detection and every truth is used at most once.
    """
    ious = pairwise_bbox_iou(bboxes_array(detections), bboxes_array(truth))  # (D, T)
    rows, columns = linear_sum_assignment(1.0 - ious)
    return [
        Match(int(row), int(column), float(ious[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if ious[row, column] >= min_iou
    ]


def count_matches(
    detections: Sequence[BBox], truth: Sequence[BBox], min_iou: float, crowds: Sequence[BBox] = ()
) -> Counts:
    """Right, wrong and missed boxes of one image at this IoU threshold.

    Args:
        crowds: Regions where objects were not told apart: an unmatched detection that lies in one by at least
            ``min_iou`` of its own area is not wrong, as in COCO's own evaluation.
    """
    matches = match_bboxes(detections, truth, min_iou)
    matched = {match.detection_index for match in matches}
    unmatched = [bbox for index, bbox in enumerate(detections) if index not in matched]
    excused = sum(any(_part_inside(bbox, crowd) >= min_iou for crowd in crowds) for bbox in unmatched)
    return Counts(len(matches), len(unmatched) - excused, len(truth) - len(matches))


def mask_jaccard(
    detections: Sequence[BBox], truth: Sequence[BBox], width: int, height: int, crowds: Sequence[BBox] = ()
) -> float:
    """Jaccard index of one image: union of all detected boxes against union of all annotated ones, as pixel masks.

    Box edges are rounded to whole pixels; pixels of crowds that belong to no annotated box count in neither mask. 1
    when both masks are empty.
    """
    truth_mask = _union_mask(truth, width, height)
    detected_mask = _union_mask(detections, width, height) & ~(_union_mask(crowds, width, height) & ~truth_mask)
    return _part(int(np.sum(detected_mask & truth_mask)), int(np.sum(detected_mask | truth_mask)))


def _part_inside(bbox: BBox, region: BBox) -> float:
    shared = BBox(
        max(bbox.x_min, region.x_min),
        max(bbox.y_min, region.y_min),
        min(bbox.x_max, region.x_max),
        min(bbox.y_max, region.y_max),
    )
    if shared.width <= 0 or shared.height <= 0:
        return 0.0
    return shared.area / bbox.area


def _union_mask(bboxes: Sequence[BBox], width: int, height: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    mask = np.zeros((height, width), dtype=np.bool_)
    for bbox in bboxes:
        x_min, y_min, x_max, y_max = (round(value) for value in bbox.clip(width, height).as_tuple())
        mask[y_min:y_max, x_min:x_max] = True
    return mask


def _part(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 1.0
