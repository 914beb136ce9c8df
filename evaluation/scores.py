"""All numbers about one run of a detector over a dataset, with 95 % confidence intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from circles.detection import Detection, circles_array
from circles.geometry import Circle, pairwise_circle_iou
from evaluation.average_precision import CocoScores, ImageMatches, average_precision, match_all
from evaluation.coco import AnnotatedImage, Truth
from evaluation.metrics import Counts, Match, count_matches, mask_jaccard, match_bboxes

DEFAULT_IOUS = (0.3, 0.5, 0.7, 0.9)
_HEADLINE_IOUS = (0.5, 0.75)
_RESAMPLES = 1000
_SEED = 20260101
_BORDER_PX = 1.0


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What was found in one picture, best score first, in how many seconds."""

    image: AnnotatedImage
    detections: tuple[Detection, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class CircleError:
    """How far a matched detection's circle lies from the annotated one; px."""

    center_px: float
    radius_px: float  # signed: positive when the detection is too large
    truth_radius_px: float
    iou: float


@dataclass(frozen=True, slots=True)
class ImageScores:
    """The numbers of one image, for detections scoring at least the threshold."""

    counts: dict[float, Counts]  # by IoU threshold
    jaccard: float
    matches: tuple[Match, ...]  # at IoU 0.5
    kept: tuple[Detection, ...]
    circle_errors: tuple[CircleError, ...]

    @property
    def count_error(self) -> int:
        """Detections less objects."""
        counts = self.counts[0.5]
        return counts.false_positives - counts.false_negatives


@dataclass(frozen=True, slots=True)
class BestF1:
    """The best F1 at IoU 0.5 over all score thresholds, and the threshold where it lies."""

    f1: float
    min_score: float


@dataclass(frozen=True, slots=True)
class Interval:
    """95 % confidence interval by bootstrap over images (Efron and Tibshirani 1993, percentile method)."""

    low: float
    high: float


@dataclass
class Scores:
    """All numbers of a run. What is NaN had nothing to be computed from."""

    results: Sequence[ImageResult]
    min_score: float
    per_image: list[ImageScores]
    counts: dict[float, Counts]
    best_f1: BestF1
    coco: CocoScores
    matches: list[ImageMatches]
    intervals: dict[str, Interval] = field(default_factory=dict)

    @property
    def jaccards(self) -> NDArray[np.float64]:
        """(N,) the images' Jaccard indexes."""
        return np.array([image.jaccard for image in self.per_image])

    @property
    def object_counts(self) -> NDArray[np.float64]:
        """(N,) how many objects are annotated in each image."""
        return np.array([len(objects(result.image)) for result in self.results], np.float64)

    @property
    def circle_errors(self) -> list[CircleError]:
        """Of all images."""
        return [error for image in self.per_image for error in image.circle_errors]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(N,) the images' times."""
        return np.array([result.seconds for result in self.results])


def score(results: Sequence[ImageResult], min_score: float, ious: Sequence[float] = DEFAULT_IOUS) -> Scores:
    """Judges a run.

    Args:
        results: At least one image; detections below ``min_score`` are used for AP and the best F1 alone.
        ious: Thresholds beside 0.5 and 0.75, which are always there.
    """
    thresholds = sorted({*ious, *_HEADLINE_IOUS})
    per_image = [_image_scores(result, min_score, thresholds) for result in results]
    matches, coco = match_all([r.image for r in results], [r.detections for r in results])
    scores = Scores(
        results=results,
        min_score=min_score,
        per_image=per_image,
        counts={iou: sum((image.counts[iou] for image in per_image), Counts()) for iou in thresholds},
        best_f1=_best_f1(results),
        coco=coco,
        matches=matches,
    )
    scores.intervals = {
        name: _interval([statistic(scores, sample) for sample in _resamples(len(results))])
        for name, statistic in STATISTICS.items()
    }
    return scores


def objects(image: AnnotatedImage) -> list[Truth]:
    """The objects to be found: all but crowds."""
    return [truth for truth in image.truth if not truth.is_crowd]


def difference_intervals(new: Scores, old: Scores) -> dict[str, Interval]:
    """Intervals of new less old for each statistic, both on the same images in the same order (paired bootstrap)."""
    samples = list(_resamples(len(new.results)))
    return {
        name: _interval([statistic(new, sample) - statistic(old, sample) for sample in samples])
        for name, statistic in STATISTICS.items()
    }


def _f1(scores: Scores, sample: NDArray[np.intp]) -> float:
    return sum((scores.per_image[index].counts[0.5] for index in sample), Counts()).f1


def _mean_jaccard(scores: Scores, sample: NDArray[np.intp]) -> float:
    return float(np.mean(scores.jaccards[sample]))


def _ap(scores: Scores, sample: NDArray[np.intp]) -> float:
    return average_precision([scores.matches[index] for index in sample])


STATISTICS: dict[str, Callable[[Scores, NDArray[np.intp]], float]] = {
    "f1_50": _f1,
    "jaccard": _mean_jaccard,
    "ap": _ap,
}


def _resamples(count: int) -> list[NDArray[np.intp]]:
    rng = np.random.default_rng(_SEED)
    return [rng.integers(0, count, count) for _ in range(_RESAMPLES)]


def _interval(values: Sequence[float]) -> Interval:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Interval(math.nan, math.nan)
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(float(low), float(high))


def _image_scores(result: ImageResult, min_score: float, ious: Sequence[float]) -> ImageScores:
    image = result.image
    kept = tuple(detection for detection in result.detections if detection.score >= min_score)
    detected = [detection.bbox for detection in kept]
    truth = objects(image)
    annotated = [each.bbox for each in truth]
    crowds = [each.bbox for each in image.truth if each.is_crowd]
    matches = match_bboxes(detected, annotated, 0.5)
    return ImageScores(
        counts={iou: count_matches(detected, annotated, iou, crowds) for iou in ious},
        jaccard=mask_jaccard(detected, annotated, image.width, image.height, crowds),
        matches=tuple(matches),
        kept=kept,
        circle_errors=tuple(
            _circle_error(kept[match.detection_index].circle, circle)
            for match in matches
            if (circle := _truth_circle(truth[match.truth_index], image)) is not None
        ),
    )


def _truth_circle(truth: Truth, image: AnnotatedImage) -> Circle | None:
    """The annotated circle; where there is only a box, the one of its size, unless the picture's border cut it."""
    if truth.circle is not None:
        return truth.circle
    bbox = truth.bbox
    if bbox.margin(image.width, image.height) < _BORDER_PX:
        return None
    return Circle((bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2, math.sqrt(bbox.width * bbox.height) / 2)


def _circle_error(detected: Circle, truth: Circle) -> CircleError:
    return CircleError(
        center_px=math.hypot(detected.center_x - truth.center_x, detected.center_y - truth.center_y),
        radius_px=detected.radius - truth.radius,
        truth_radius_px=truth.radius,
        iou=float(pairwise_circle_iou(circles_array([detected]), circles_array([truth]))[0, 0]),
    )


def _best_f1(results: Sequence[ImageResult]) -> BestF1:
    """Every image is matched anew for each of its scores as the threshold; what changes there is added up in order."""
    changes: list[tuple[float, Counts, Counts]] = []
    total = Counts()
    for result in results:
        annotated = [truth.bbox for truth in objects(result.image)]
        crowds = [truth.bbox for truth in result.image.truth if truth.is_crowd]
        before = count_matches([], annotated, 0.5)
        total += before
        for count, detection in enumerate(result.detections, start=1):
            bboxes = [each.bbox for each in result.detections[:count]]
            after = count_matches(bboxes, annotated, 0.5, crowds)
            changes.append((detection.score, before, after))
            before = after
    best = BestF1(total.f1, 1.0)
    changes.sort(key=lambda change: -change[0])
    for index, (threshold, before, after) in enumerate(changes):
        total = Counts(
            total.true_positives + after.true_positives - before.true_positives,
            total.false_positives + after.false_positives - before.false_positives,
            total.false_negatives + after.false_negatives - before.false_negatives,
        )
        is_last_of_tie = index + 1 == len(changes) or changes[index + 1][0] < threshold
        if is_last_of_tie and total.f1 > best.f1:
            best = BestF1(total.f1, threshold)
    return best
