"""Matching and scores, by hand and by properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circles.geometry import BBox
from evaluation.metrics import Counts, Match, count_matches, mask_jaccard, match_bboxes

box = st.builds(
    lambda x, y, width, height: BBox(x, y, x + width, y + height),
    st.floats(0, 90),
    st.floats(0, 90),
    st.floats(1, 40),
    st.floats(1, 40),
)


def test_matches_by_hand() -> None:
    truth = [BBox(0, 0, 10, 10), BBox(20, 0, 30, 10)]
    detections = [BBox(20, 0, 30, 5), BBox(50, 50, 60, 60), BBox(0, 0, 10, 10)]
    assert match_bboxes(detections, truth, 0.5) == [Match(0, 1, 0.5), Match(2, 0, 1.0)]
    assert match_bboxes(detections, truth, 0.6) == [Match(2, 0, 1.0)]
    assert count_matches(detections, truth, 0.5) == Counts(2, 1, 0)


def test_assignment_is_the_best_of_all_not_the_first_best() -> None:
    """Both detections fit the first truth best; one of them must take the second for the greatest total."""
    truth = [BBox(0, 0, 10, 10), BBox(0, 0, 10, 14)]
    detections = [BBox(0, 0, 10, 11), BBox(0, 0, 10, 10)]
    assert {(match.detection_index, match.truth_index) for match in match_bboxes(detections, truth, 0.5)} == {
        (0, 1),
        (1, 0),
    }


def test_counts_and_their_scores() -> None:
    counts = Counts(3, 1, 2) + Counts(1, 0, 0)
    assert counts == Counts(4, 1, 2)
    assert counts.precision == pytest.approx(4 / 5)
    assert counts.recall == pytest.approx(4 / 6)
    assert counts.f1 == pytest.approx(8 / 11)


def test_nothing_to_find_and_nothing_found_is_perfect() -> None:
    assert count_matches([], [], 0.5).f1 == 1
    assert count_matches([BBox(0, 0, 1, 1)], [], 0.5).f1 == 0
    assert count_matches([], [BBox(0, 0, 1, 1)], 0.5) == Counts(0, 0, 1)


def test_jaccard_by_hand() -> None:
    truth = [BBox(0, 0, 10, 10), BBox(5, 0, 15, 10)]  # joint: 150 px
    assert mask_jaccard(truth, truth, 100, 100) == 1
    assert mask_jaccard([BBox(0, 0, 15, 10)], truth, 100, 100) == 1
    assert mask_jaccard([BBox(0, 0, 15, 20)], truth, 100, 100) == pytest.approx(150 / 300)
    assert mask_jaccard([], truth, 100, 100) == 0
    assert mask_jaccard([], [], 100, 100) == 1


def test_jaccard_sees_only_the_image() -> None:
    assert mask_jaccard([BBox(-50, -50, 10, 10)], [BBox(0, 0, 10, 10)], 20, 20) == 1


@given(st.lists(box, max_size=6))
def test_perfect_detections_score_one(truth: list[BBox]) -> None:
    counts = count_matches(truth, truth, 0.9)
    assert (counts.precision, counts.recall, counts.f1) == (1, 1, 1)
    assert mask_jaccard(truth, truth, 140, 140) == 1


@given(st.lists(box, max_size=6), st.lists(box, max_size=6), st.integers(0, 2**32 - 1))
def test_order_never_matters(detections: list[BBox], truth: list[BBox], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled_detections = [detections[index] for index in rng.permutation(len(detections))]
    shuffled_truth = [truth[index] for index in rng.permutation(len(truth))]
    shuffled = match_bboxes(shuffled_detections, shuffled_truth, 0.0)
    ordered = match_bboxes(detections, truth, 0.0)
    # Ties may be broken otherwise, but the total of the best assignment is one number.
    assert sum(match.iou for match in shuffled) == pytest.approx(sum(match.iou for match in ordered))
    assert mask_jaccard(shuffled_detections, shuffled_truth, 140, 140) == mask_jaccard(detections, truth, 140, 140)
