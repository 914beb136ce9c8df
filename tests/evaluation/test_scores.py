"""Every number of a run, computed by hand, and properties that always hold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circles.detection import Detection
from circles.geometry import BBox, Circle
from evaluation.coco import AnnotatedImage, Truth
from evaluation.scores import ImageResult, difference_intervals, score
from evaluation.summary import HEADLINE, as_json


def found(circle: Circle, at_score: float) -> Detection:
    return Detection(circle, circle.bbox(), at_score)


def result(truth: list[Truth], detections: list[Detection], number: int = 1, seconds: float = 0.1) -> ImageResult:
    ranked = tuple(sorted(detections, key=lambda detection: -detection.score))
    return ImageResult(AnnotatedImage(number, Path(f"{number}.png"), 200, 100, tuple(truth)), ranked, seconds)


A, B, C = Circle(30, 50, 20), Circle(100, 50, 20), Circle(170, 50, 20)


def truth_of(*circles: Circle) -> list[Truth]:
    return [Truth(circle.bbox(), circle) for circle in circles]


def test_a_run_by_hand() -> None:
    """Two pictures: one with a hit, a shifted hit and a miss; one with a hit and a false alarm."""
    shifted = Circle(104, 50, 20)  # boxes share 36 of 44 px: IoU 36/44
    results = [
        result(truth_of(A, B, C), [found(A, 0.9), found(shifted, 0.6)], number=1, seconds=0.1),
        result(truth_of(A), [found(A, 0.8), found(C, 0.4)], number=2, seconds=0.3),
    ]
    scores = score(results, min_score=0.3)
    metrics = as_json(scores, {"note": "kept"})
    assert (metrics["images"], metrics["objects"], metrics["note"]) == (2, 4, "kept")
    assert metrics["precision_50"] == pytest.approx(3 / 4)
    assert metrics["recall_50"] == pytest.approx(3 / 4)
    assert metrics["f1_50"] == pytest.approx(3 / 4)
    assert metrics["f1_75"] == pytest.approx(3 / 4)
    assert metrics["at_iou"]["0.9"]["true_positives"] == 2
    assert metrics["mean_iou"] == pytest.approx((1 + 36 / 44 + 1) / 3)
    # Pixel masks: 40 x 40 boxes. First picture: A, and 36 of 44 columns of B; C is missed.
    first, second = 40 * (40 + 36) / (40 * (40 + 44 + 40)), 1 / 2
    assert metrics["jaccard"] == pytest.approx((first + second) / 2)
    assert metrics["jaccard_weighted"] == pytest.approx((3 * first + second) / 4)
    assert (metrics["jaccard_min"], metrics["jaccard_max"]) == pytest.approx((second, first))
    assert metrics["circles"]["count"] == 3
    assert metrics["circles"]["center_error_px"]["median"] == 0
    assert metrics["circles"]["center_error_px"]["p95"] == pytest.approx(3.6)  # of 0, 0, 4 px
    assert metrics["circles"]["center_error_relative"]["p95"] == pytest.approx(0.18)
    assert metrics["circles"]["radius_error_px"]["p95"] == 0
    # One too few in the first, one too many in the second.
    assert metrics["count_error"] == {"mean_absolute": 1, "mean": 0, "right": 0}
    assert metrics["seconds"]["median"] == pytest.approx(0.2)
    # Without the false alarm at 0.4: 3 right, 0 wrong, 1 missed.
    assert (metrics["best_f1_50"], metrics["best_f1_50_min_score"]) == (pytest.approx(6 / 7), 0.6)


def test_threshold_cuts_all_but_ap_and_best_f1() -> None:
    results = [result(truth_of(A, B), [found(A, 0.9), found(B, 0.2)])]
    strict, loose = score(results, 0.5), score(results, 0.1)
    assert (strict.counts[0.5].recall, loose.counts[0.5].recall) == (0.5, 1)
    assert strict.coco.ap == loose.coco.ap == pytest.approx(1)
    assert strict.best_f1 == loose.best_f1


def test_boxes_alone_give_circles_unless_the_border_cut_them() -> None:
    whole, cut = BBox(10, 30, 50, 70), BBox(180, 30, 200, 70)
    detections = [found(Circle(30, 50, 21), 0.9), Detection(Circle(195, 50, 20), cut, 0.9)]
    scores = score([result([Truth(whole), Truth(cut)], detections)], 0.5)
    (error,) = scores.circle_errors
    assert (error.center_px, error.radius_px, error.truth_radius_px) == pytest.approx((0, 1, 20))
    assert error.iou == pytest.approx(20**2 / 21**2)


def test_crowds_neither_help_nor_harm() -> None:
    crowd = Truth(BBox(80, 30, 190, 70), is_crowd=True)
    scores = score([result([*truth_of(A), crowd], [found(A, 0.9), found(B, 0.8)])], 0.5)
    assert scores.counts[0.5].f1 == 1
    assert as_json(scores, {})["objects"] == 1
    assert as_json(scores, {})["jaccard"] == 1


def test_nothing_found_and_nothing_to_find() -> None:
    empty = as_json(score([result([], [])], 0.5), {})
    assert (empty["f1_50"], empty["jaccard"]) == (1, 1)
    assert empty["ap"] is empty["mean_iou"] is empty["jaccard_weighted"] is None
    json.dumps(empty, allow_nan=False)
    missed = as_json(score([result(truth_of(A), [])], 0.5), {})
    assert (missed["f1_50"], missed["ap"], missed["jaccard"]) == (0, 0, 0)


def test_every_headline_key_is_there() -> None:
    metrics = as_json(score([result(truth_of(A), [found(A, 0.9)])], 0.5), {})
    assert {key for key, _ in HEADLINE} <= set(metrics)
    assert {"images", "objects", "precision_50", "recall_50", "f1_50", "f1_75", "jaccard"} <= set(metrics)
    assert {"jaccard_weighted", "mean_iou", "ap", "ap50", "ap75"} <= set(metrics)


def test_intervals_hold_the_value_and_are_repeatable() -> None:
    rng = np.random.default_rng(0)
    results = [
        result(truth_of(A, B), [found(A, 0.9), *([found(B, 0.8)] if rng.random() < 0.7 else [])], number)
        for number in range(30)
    ]
    scores, again = score(results, 0.5), score(results, 0.5)
    assert scores.intervals == again.intervals
    metrics = as_json(scores, {})
    for name, interval in scores.intervals.items():
        assert interval.low < metrics[name] < interval.high
        assert interval.high - interval.low < 0.3


def test_differences_are_paired() -> None:
    """A run that is a little better in every picture is surely better, however much the pictures differ."""
    worse = [result(truth_of(A, B, C), [found(A, 0.9)][: number % 2], number) for number in range(20)]
    better = [
        result(truth_of(A, B, C), [found(A, 0.9), found(B, 0.9)][: 1 + number % 2], number) for number in range(20)
    ]
    difference = difference_intervals(score(better, 0.5), score(worse, 0.5))["f1_50"]
    assert difference.low > 0.2
    same = difference_intervals(score(worse, 0.5), score(worse, 0.5))
    assert all((interval.low, interval.high) == (0, 0) for interval in same.values())


circle = st.builds(Circle, st.floats(25, 165), st.floats(25, 70), st.floats(5, 20))


@settings(deadline=None, max_examples=25)
@given(st.lists(circle, min_size=1, max_size=4))
def test_perfect_predictions_score_one(circles: list[Circle]) -> None:
    metrics = as_json(score([result(truth_of(*circles), [found(circle, 0.9) for circle in circles])], 0.5), {})
    for key in ("precision_50", "recall_50", "f1_50", "f1_75", "jaccard", "mean_iou"):
        assert metrics[key] == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.lists(circle, min_size=1, max_size=4), st.lists(circle, max_size=4))
def test_a_box_that_hits_nothing_never_raises_precision(truth: list[Circle], detected: list[Circle]) -> None:
    nowhere = Circle(195, 95, 4)  # no drawn circle reaches it
    before = score([result(truth_of(*truth), [found(each, 0.9) for each in detected])], 0.5).counts[0.5]
    after = score([result(truth_of(*truth), [found(each, 0.9) for each in (*detected, nowhere)])], 0.5).counts[0.5]
    assert after.true_positives == before.true_positives
    assert after.false_positives == before.false_positives + 1
    assert after.precision <= before.precision


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.lists(circle, max_size=3), st.lists(circle, max_size=3)), min_size=2, max_size=5))
def test_order_of_images_never_matters(pictures: list[tuple[list[Circle], list[Circle]]]) -> None:
    results = [
        result(truth_of(*truth), [found(each, 0.5 + 0.1 * rank) for rank, each in enumerate(detected)], number)
        for number, (truth, detected) in enumerate(pictures)
    ]
    forward, backward = as_json(score(results, 0.5), {}), as_json(score(results[::-1], 0.5), {})
    for key in ("precision_50", "recall_50", "f1_50", "jaccard", "jaccard_weighted", "best_f1_50"):
        assert forward[key] == pytest.approx(backward[key], nan_ok=True) if forward[key] is not None else True
    assert math.isfinite(forward["f1_50"])
