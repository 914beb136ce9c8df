"""Detectors by their names, and duplicates among detections."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from circles.detection import Detection, circles_array, suppress_duplicates
from circles.detectors import DetectorName, default_min_score, detector_info, load_detector
from circles.detectors.heatmap import HeatmapDetector
from circles.detectors.runtimes import OnnxRuntime
from circles.geometry import Circle, pairwise_circle_iou


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


def test_suppression_is_that_of_all_overlaps_with_all() -> None:
    """Only neighbours are compared; what stays is the same."""
    rng = np.random.default_rng(1)
    circles = rng.uniform((0, 0, 2), (300, 300, 40), (400, 3))
    detections = [
        Detection(circle, circle.bbox(), float(score))
        for circle, score in zip((Circle(*row) for row in circles.tolist()), rng.uniform(size=400), strict=True)
    ]
    ranked = sorted(detections, key=lambda each: -each.score)
    rows = circles_array([each.circle for each in ranked])
    overlaps = pairwise_circle_iou(rows, rows)
    kept: list[int] = []
    for index in range(len(ranked)):
        if all(overlaps[index, other] <= 0.3 for other in kept):
            kept.append(index)
    assert suppress_duplicates(detections, max_iou=0.3) == [ranked[index] for index in kept]


def test_suppression_of_many_takes_no_memory_by_their_square() -> None:
    many = [detection(25.0 * number, score=1 - number / 40_000) for number in range(20_000)]
    tracemalloc.start()
    try:
        assert suppress_duplicates(many, max_iou=0.3) == many
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20  # all overlaps would be 3 GB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("asked", "absent", "loaded"),
    [
        ("heatmap", (), "heatmap"),
        ("heatmap", ("onnxruntime",), "heatmap-torch"),
        ("heatmap", ("onnxruntime", "torch"), "hough"),
        ("heatmap-torch", (), "heatmap-torch"),
        ("heatmap-torch", ("torch",), "heatmap"),
        ("heatmap-torch", ("safetensors",), "heatmap"),
        ("heatmap-torch", ("onnxruntime", "torch"), "hough"),
        ("hough", ("onnxruntime", "torch"), "hough"),
    ],
)
def test_what_stands_in_has_its_own_name_and_threshold(
    asked: DetectorName,
    absent: tuple[str, ...],
    loaded: DetectorName,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected_min_score = default_min_score(loaded)
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)  # what makes Python say that it is not there
    detector = load_detector(asked)
    assert detector_info(asked) == detector.info
    assert detector.info.name == loaded.removesuffix("-torch")
    assert default_min_score(asked) == expected_min_score
    if isinstance(detector, HeatmapDetector):
        assert isinstance(detector._runtime, OnnxRuntime) == (loaded == "heatmap")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (asked != loaded)
    assert all(f"{loaded} instead of {asked}" in warning for warning in warnings)


def test_name_and_threshold_are_told_without_loading_what_detects() -> None:
    """Whoever routes pictures, and detects in none, would take seconds and hundreds of MB for it."""
    code = (
        "import sys; from circles.detectors import default_min_score, detector_info; "
        "[(default_min_score(name), detector_info(name)) for name in ('heatmap', 'heatmap-torch')]; "
        "print({'torch', 'onnxruntime'} & {*sys.modules})"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
