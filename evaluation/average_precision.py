"""COCO's average precision: matching by pycocotools, accumulation here, so that it can be repeated on resamples.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its reference evaluation, whose numbers a test
holds these to.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from circles.detection import Detection
from evaluation.coco import CATEGORY_ID, AnnotatedImage, coco_content

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
_SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True)
class ImageMatches:
    """COCO's greedy matching in one image, for T thresholds and D detections, best score first.

    Ignored detections count neither as right nor as wrong; ``truth_count`` counts the objects to find.
    """

    scores: NDArray[np.float64]  # (D,)
    is_match: NDArray[np.bool_]  # (T, D)
    is_ignored: NDArray[np.bool_]  # (T, D)
    truth_count: int


@dataclass(frozen=True, slots=True)
class CocoScores:
    """COCO's summary; NaN where there is nothing to find (of that size)."""

    ap: float
    ap50: float
    ap75: float
    ap_by_size: dict[str, float]  # small (area below 32^2 px), medium (below 96^2), large
    average_recall: float
    average_recall_by_size: dict[str, float]


def match_all(
    images: Sequence[AnnotatedImage], detections: Sequence[Sequence[Detection]]
) -> tuple[list[ImageMatches], CocoScores]:
    """Matches every image by COCO's rules and sums up.

    Of an image with more than 100 objects or detections as many detections as there are count, not the usual 100.
    """
    evaluation = _coco_evaluation(images, detections)
    shown = evaluation.evalImgs[: len(images)]  # one category, and "all sizes" comes first
    matches = [_image_matches(entry) for entry in shown]
    precision = evaluation.eval["precision"]  # (T, recall levels, categories, sizes, detection limits)
    recall = evaluation.eval["recall"]  # (T, categories, sizes, detection limits)
    return matches, CocoScores(
        ap=_mean_of_valid(precision[:, :, 0, 0, -1]),
        ap50=_mean_of_valid(precision[0, :, 0, 0, -1]),
        ap75=_mean_of_valid(precision[5, :, 0, 0, -1]),
        ap_by_size={name: _mean_of_valid(precision[:, :, 0, i, -1]) for i, name in enumerate(_SIZE_NAMES, start=1)},
        average_recall=_mean_of_valid(recall[:, 0, 0, -1]),
        average_recall_by_size={
            name: _mean_of_valid(recall[:, 0, i, -1]) for i, name in enumerate(_SIZE_NAMES, start=1)
        },
    )


def precision_at_recall(matches: Sequence[ImageMatches]) -> NDArray[np.float64]:
    """(T, 101) interpolated precision at the recall levels, over all these images; NaN with nothing to find."""
    truth_count = sum(image.truth_count for image in matches)
    if truth_count == 0:
        return np.full((len(IOU_THRESHOLDS), len(RECALL_LEVELS)), np.nan)
    scores = np.concatenate([image.scores for image in matches])
    order = np.argsort(-scores, kind="mergesort")  # stable, as the reference does it
    is_match = np.concatenate([image.is_match for image in matches], axis=1)[:, order]
    is_ignored = np.concatenate([image.is_ignored for image in matches], axis=1)[:, order]
    true_positives = np.cumsum(is_match & ~is_ignored, axis=1)
    false_positives = np.cumsum(~is_match & ~is_ignored, axis=1)
    recalls = true_positives / truth_count
    precisions = true_positives / np.maximum(true_positives + false_positives, np.spacing(1))
    # Precision at a recall is the best one at this recall or any higher.
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros((len(IOU_THRESHOLDS), len(RECALL_LEVELS)))
    for row in range(len(IOU_THRESHOLDS)):
        positions = np.searchsorted(recalls[row], RECALL_LEVELS, side="left")
        is_reached = positions < recalls.shape[1]
        result[row, is_reached] = precisions[row, positions[is_reached]]
    return result


def average_precision(matches: Sequence[ImageMatches]) -> float:
    """AP over IoU 0.50 to 0.95; NaN when there is nothing to find."""
    return float(np.mean(precision_at_recall(matches)))


def _coco_evaluation(images: Sequence[AnnotatedImage], detections: Sequence[Sequence[Detection]]) -> COCOeval:
    content = coco_content((image.path.name, image.width, image.height, image.truth) for image in images)
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]  # sizes are told by the box
    results = [
        {
            "image_id": number,
            "category_id": CATEGORY_ID,
            "bbox": [d.bbox.x_min, d.bbox.y_min, d.bbox.width, d.bbox.height],
            "score": d.score,
        }
        for number, found in enumerate(detections, start=1)
        for d in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        found_coco = truth.loadRes(results) if results else _empty_results(content)
        evaluation = COCOeval(truth, found_coco, iouType="bbox")
        most = max([100, *(len(found) for found in detections), *(len(image.truth) for image in images)])
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _empty_results(content: dict[str, object]) -> COCO:
    """pycocotools refuses an empty list of results."""
    empty = COCO()
    empty.dataset = {**content, "annotations": []}
    empty.createIndex()
    return empty


def _image_matches(entry: dict[str, NDArray[np.float64]] | None) -> ImageMatches:
    if entry is None:  # neither truth nor detections
        nothing = np.zeros((len(IOU_THRESHOLDS), 0), np.bool_)
        return ImageMatches(np.zeros(0), nothing, nothing, 0)
    return ImageMatches(
        scores=np.asarray(entry["dtScores"], np.float64),
        is_match=np.asarray(entry["dtMatches"]) > 0,
        is_ignored=np.asarray(entry["dtIgnore"]).astype(np.bool_),
        truth_count=int(np.sum(np.asarray(entry["gtIgnore"]) == 0)),
    )


def _mean_of_valid(values: NDArray[np.float64]) -> float:
    """pycocotools writes -1 where there is nothing to find."""
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else float("nan")
