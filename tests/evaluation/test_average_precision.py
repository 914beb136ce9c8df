"""Our accumulation of average precision against pycocotools', on sets with known difficulties."""

from pathlib import Path

import numpy as np
import pytest

from circles.detection import Detection
from circles.geometry import BBox, Circle
from evaluation.average_precision import average_precision, match_all, precision_at_recall
from evaluation.coco import AnnotatedImage, Truth
from evaluation.scores import ImageResult, score


def image(*truth: Truth, number: int = 1) -> AnnotatedImage:
    return AnnotatedImage(number, Path(f"{number}.png"), 400, 400, truth)


def found(bbox: BBox, at_score: float) -> Detection:
    center = ((bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2)
    return Detection(Circle(*center, bbox.width / 2), bbox, at_score)


def square(x: float, y: float, side: float = 40) -> BBox:
    return BBox(x, y, x + side, y + side)


def difficult_set() -> tuple[list[AnnotatedImage], list[list[Detection]]]:
    """Ties, crowds, empty images, duplicates, near misses, and more than a hundred objects."""
    rng = np.random.default_rng(4)
    images, detections = [], []
    for number in range(1, 41):
        truth = [
            Truth(square(float(x), float(y), float(rng.uniform(10, 120))), is_crowd=bool(rng.random() < 0.15))
            for x, y in rng.uniform(0, 280, (int(rng.integers(0, 6)), 2))
        ]
        guesses = []
        for each in truth:
            for _ in range(int(rng.integers(0, 3))):  # missed, found, found twice
                shift = rng.normal(0, 4, 4)
                corners = np.array(each.bbox.as_tuple()) + shift
                guesses.append(found(BBox(*corners.tolist()), float(rng.choice([0.2, 0.5, 0.5, 0.9]))))
        for x, y in rng.uniform(0, 300, (int(rng.integers(0, 3)), 2)):
            guesses.append(found(square(float(x), float(y), 60), float(rng.choice([0.1, 0.5, 0.8]))))
        images.append(image(*truth, number=number))
        detections.append(sorted(guesses, key=lambda guess: -guess.score))
    images.append(image(number=41))
    detections.append([])
    grid = [square(30.0 * (n % 12), 30.0 * (n // 12), 20) for n in range(130)]
    images.append(image(*(Truth(bbox) for bbox in grid), number=42))
    detections.append([found(bbox, 0.9) for bbox in grid[:125]])
    return images, detections


def test_agrees_with_the_reference() -> None:
    images, detections = difficult_set()
    matches, coco = match_all(images, detections)
    ours = precision_at_recall(matches)
    assert 0.2 < coco.ap < 0.95
    assert average_precision(matches) == pytest.approx(coco.ap, abs=1e-12)
    assert ours[0].mean() == pytest.approx(coco.ap50, abs=1e-12)
    assert ours[5].mean() == pytest.approx(coco.ap75, abs=1e-12)


@pytest.mark.parametrize("subset", range(8))
def test_agrees_with_the_reference_on_parts(subset: int) -> None:
    """What the bootstrap relies on: accumulating some images' matches is evaluating those images alone."""
    images, detections = difficult_set()
    chosen = np.random.default_rng(subset).choice(len(images), 12, replace=False)
    matches, _ = match_all(images, detections)
    _, coco = match_all([images[index] for index in chosen], [detections[index] for index in chosen])
    assert average_precision([matches[index] for index in chosen]) == pytest.approx(coco.ap, abs=1e-12)


def test_our_counts_agree_with_the_reference_matching() -> None:
    """With every detection kept: right, wrong and missed at IoU 0.5 by Hungarian and by greedy matching.

    The two may differ where boxes compete; in this set they do so in no image.
    """
    images, detections = difficult_set()
    matches, _ = match_all(images, detections)
    results = [ImageResult(each, tuple(guesses), 0.1) for each, guesses in zip(images, detections, strict=True)]
    ours = score(results, min_score=0.0).counts[0.5]
    is_right = [each.is_match[0] & ~each.is_ignored[0] for each in matches]
    is_wrong = [~each.is_match[0] & ~each.is_ignored[0] for each in matches]
    assert ours.true_positives == sum(int(right.sum()) for right in is_right)
    assert ours.false_positives == sum(int(wrong.sum()) for wrong in is_wrong)
    assert ours.true_positives + ours.false_negatives == sum(each.truth_count for each in matches)


def test_perfect_and_empty_runs() -> None:
    images, _ = difficult_set()
    perfect = [[found(truth.bbox, 0.9) for truth in each.truth if not truth.is_crowd] for each in images]
    assert average_precision(match_all(images, perfect)[0]) == pytest.approx(1)
    assert average_precision(match_all(images, [[] for _ in images])[0]) == 0


def test_nothing_to_find_is_nothing_to_measure() -> None:
    matches, coco = match_all([image()], [[]])
    assert np.isnan(coco.ap)
    assert np.isnan(average_precision(matches))


def test_sizes_are_told_apart() -> None:
    images = [image(Truth(square(10, 10, 20)), Truth(square(100, 100, 60)), Truth(square(200, 200, 150)))]
    _, coco = match_all(images, [[found(square(100, 100, 60), 0.9)]])
    assert coco.ap_by_size["small"] == 0
    assert coco.ap_by_size["medium"] == pytest.approx(1)
    assert coco.ap_by_size["large"] == 0
