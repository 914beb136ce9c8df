"""A run in numbers and names: what ``metrics.json`` holds and the headline table shows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.scores import Scores

HEADLINE = (
    ("images", "images"),
    ("objects", "objects"),
    ("precision_50", "precision at IoU 0.5"),
    ("recall_50", "recall at IoU 0.5"),
    ("f1_50", "F1 at IoU 0.5"),
    ("f1_75", "F1 at IoU 0.75"),
    ("best_f1_50", "best F1 over all scores"),
    ("jaccard", "mean Jaccard index"),
    ("jaccard_weighted", "... weighted by objects"),
    ("mean_iou", "mean IoU of matches"),
    ("ap", "AP (IoU 0.50 to 0.95)"),
    ("ap50", "AP50"),
    ("ap75", "AP75"),
    ("ar", "AR"),
    ("false_per_image", "false detections an image"),
    ("center_error_px", "median error of centers, px"),
    ("radius_error_px", "median error of radii, px"),
)
"""Keys of ``metrics.json`` in the headline table, and what they are called there."""


def as_json(scores: Scores, about: dict[str, Any]) -> dict[str, Any]:
    """The run as ``metrics.json`` holds it; NaN becomes null. ``evaluation/README.md`` documents every key."""
    half = scores.counts[0.5]
    errors = scores.circle_errors
    ious = [match.iou for image in scores.per_image for match in image.matches]
    weights = scores.object_counts
    count_errors = np.array([image.count_error for image in scores.per_image])
    content: dict[str, Any] = {
        "images": len(scores.results),
        "objects": int(weights.sum()),
        "min_score": scores.min_score,
        "precision_50": half.precision,
        "recall_50": half.recall,
        "f1_50": half.f1,
        "f1_75": scores.counts[0.75].f1,
        "best_f1_50": scores.best_f1.f1,
        "best_f1_50_min_score": scores.best_f1.min_score,
        "jaccard": float(np.mean(scores.jaccards)),
        "jaccard_weighted": float(np.average(scores.jaccards, weights=weights)) if weights.sum() else math.nan,
        "jaccard_min": float(np.min(scores.jaccards)),
        "jaccard_max": float(np.max(scores.jaccards)),
        "mean_iou": float(np.mean(ious)) if ious else math.nan,
        "ap": scores.coco.ap,
        "ap50": scores.coco.ap50,
        "ap75": scores.coco.ap75,
        **{f"ap_{name}": value for name, value in scores.coco.ap_by_size.items()},
        "ar": scores.coco.average_recall,
        **{f"ar_{name}": value for name, value in scores.coco.average_recall_by_size.items()},
        "false_per_image": half.false_positives / len(scores.results),
        "center_error_px": _spread([error.center_px for error in errors])["median"],
        "radius_error_px": _spread([abs(error.radius_px) for error in errors])["median"],
        "at_iou": {
            f"{iou:g}": {
                "true_positives": counts.true_positives,
                "false_positives": counts.false_positives,
                "false_negatives": counts.false_negatives,
                "precision": counts.precision,
                "recall": counts.recall,
                "f1": counts.f1,
            }
            for iou, counts in scores.counts.items()
        },
        "circles": {
            "count": len(errors),
            "center_error_px": _spread([error.center_px for error in errors]),
            "center_error_relative": _spread([error.center_px / error.truth_radius_px for error in errors]),
            "radius_error_px": _spread([abs(error.radius_px) for error in errors]),
            "radius_error_relative": _spread([abs(error.radius_px) / error.truth_radius_px for error in errors]),
            "iou": _spread([error.iou for error in errors]),
        },
        "count_error": {
            "mean_absolute": float(np.mean(np.abs(count_errors))),
            "mean": float(np.mean(count_errors)),
            "right": float(np.mean(count_errors == 0)),
        },
        "seconds": _spread(list(scores.seconds)),
        "intervals_95": {name: [interval.low, interval.high] for name, interval in scores.intervals.items()},
        **about,
    }
    return {key: _without_nan(value) for key, value in content.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"median": math.nan, "p95": math.nan}
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
