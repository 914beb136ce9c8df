"""Duplicates among detections."""

from circles.detection import Detection, suppress_duplicates
from circles.geometry import Circle


def detection(x: float, score: float, radius: float = 10) -> Detection:
    circle = Circle(x, 50, radius)
    return Detection(circle, circle.bbox(), score)


def test_of_overlapping_circles_the_best_stays() -> None:
    best, duplicate, other = detection(50, 0.9), detection(51, 0.8), detection(80, 0.7)
    assert suppress_duplicates([duplicate, other, best], max_iou=0.3) == [best, other]


def test_touching_circles_both_stay() -> None:
    touching = [detection(50, 0.9), detection(70, 0.8)]
    assert suppress_duplicates(touching, max_iou=0.0) == touching


def test_a_suppressed_circle_suppresses_nothing() -> None:
    """The middle one goes by the first; the last one overlaps only the middle one, and stays."""
    chain = [detection(50, 0.9), detection(58, 0.8), detection(66, 0.7)]
    assert suppress_duplicates(chain, max_iou=0.3) == [chain[0], chain[2]]


def test_nothing_to_suppress() -> None:
    assert suppress_duplicates([], max_iou=0.3) == []
