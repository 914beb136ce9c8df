"""A detector for encoded pictures: whatever is wrong with one costs the others nothing."""

import pytest

from circles.detection import ImageDetections
from circles.detectors.encoded import EncodedDetector
from circles.errors import BrokenImageError, DetectionFailedError, UnsupportedImageError
from circles.geometry import Circle
from tests.fakes import FixedDetector
from tests.pictures import disc_jpeg, draw_scene, encode


def test_each_picture_gets_its_own_answer() -> None:
    detector = FixedDetector((Circle(50, 50, 20), 0.9), (Circle(50, 50, 20), 0.05), fails_at_width=300)
    files = [disc_jpeg(1), b"text", disc_jpeg(1)[:-1500], encode(draw_scene((), width=300).image), disc_jpeg(2)]
    outcomes = EncodedDetector(detector, max_pixels=10**6, min_score=0.1).detect(files)
    kinds = [ImageDetections, UnsupportedImageError, BrokenImageError, DetectionFailedError, ImageDetections]
    assert [type(outcome) for outcome in outcomes] == kinds
    for outcome in (outcomes[0], outcomes[4]):
        assert isinstance(outcome, ImageDetections)
        assert (outcome.width, outcome.height, outcome.detector.name) == (320, 240, "fixed")
        assert [detection.score for detection in outcome.detections] == [0.9]


def test_whole_pictures_go_to_the_detector_together() -> None:
    detector = FixedDetector()
    EncodedDetector(detector, 10**6, 0.1).detect([disc_jpeg(1), b"text", disc_jpeg(2)])
    assert detector.batch_sizes == [2]
    EncodedDetector(detector, 10**6, 0.1).detect([b"text"])
    assert detector.batch_sizes == [2]


def test_large_batches_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture has 320 x 240 x 3 bytes; two of them reach the bound."""
    monkeypatch.setattr("circles.detectors.encoded._MAX_BATCH_BYTES", 2 * 320 * 240 * 3)
    detector = FixedDetector((Circle(50, 50, 20), 0.9))
    files = [disc_jpeg(1), b"text", disc_jpeg(2), disc_jpeg(3), disc_jpeg(4), disc_jpeg(5)]
    outcomes = EncodedDetector(detector, 10**6, 0.1).detect(files)
    assert detector.batch_sizes == [2, 2, 1]
    assert [isinstance(outcome, ImageDetections) for outcome in outcomes] == [True, False, True, True, True, True]
