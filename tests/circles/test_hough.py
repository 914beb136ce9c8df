"""The classical detector on drawn circles, whose truth is exact, and on photographs."""

from pathlib import Path

import numpy as np
import pytest

from circles.detection import Detection
from circles.detectors import default_min_score, load_detector
from circles.geometry import Circle
from circles.imaging import RGBImage, decode_image
from evaluation.coco import load_dataset
from evaluation.metrics import Counts, count_matches
from tests.pictures import draw_scene


def detect(image: RGBImage) -> list[Detection]:
    (detections,) = load_detector("hough").detect([image])
    return [detection for detection in detections if detection.score >= default_min_score("hough")]


def assert_found(detections: list[Detection], circles: tuple[Circle, ...], tolerance_px: float = 1.5) -> None:
    """As many as drawn, each within the tolerance: the working pictures are up to 800 px wide, edges good to 1 px."""
    found = sorted((d.circle.center_x, d.circle.center_y, d.circle.radius) for d in detections)
    drawn = sorted((c.center_x, c.center_y, c.radius) for c in circles)
    assert len(found) == len(drawn)
    np.testing.assert_allclose(found, drawn, atol=tolerance_px)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (900, 600), (2400, 1800)], ids=str)
def test_sizes(size: tuple[int, int]) -> None:
    width, height = size
    unit = min(size)
    circles = (Circle(0.3 * unit, 0.4 * unit, 0.15 * unit), Circle(0.7 * unit, 0.6 * unit, 0.2 * unit))
    detections = detect(draw_scene(circles, width, height).image)
    assert_found(detections, circles, tolerance_px=1.5 * max(1.0, max(size) / 800))


def test_touching_circles_stay_apart() -> None:
    circles = (Circle(80, 120, 45), Circle(170, 120, 45))
    assert_found(detect(draw_scene(circles).image), circles)


def test_circle_cut_by_the_border_has_its_box_inside() -> None:
    circles = (Circle(20, 120, 60),)
    (detection,) = detect(draw_scene(circles).image)
    assert detection.bbox.x_min == 0
    assert detection.circle.center_x == pytest.approx(20, abs=4)
    assert detection.circle.radius == pytest.approx(60, abs=4)


def test_empty_picture() -> None:
    assert detect(draw_scene(()).image) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 3), (16, 16)], ids=str)
def test_tiny_pictures_are_no_error(shape: tuple[int, int]) -> None:
    assert isinstance(detect(np.zeros((*shape, 3), np.uint8)), list)


def test_grey_ramps_and_squares_are_not_round() -> None:
    image = np.full((240, 320, 3), 200, np.uint8)
    image[60:180, 80:200] = 40
    assert detect(image) == []


def test_batch_equals_single_and_read_only_arrays_will_do() -> None:
    scenes = [draw_scene((Circle(100 + 10 * n, 100, 30 + 5 * n),), seed=n).image for n in range(4)]
    for image in scenes:
        image.setflags(write=False)
    detector = load_detector("hough")
    assert detector.detect(scenes) == [detector.detect([image])[0] for image in scenes]


def test_scores_are_sorted_and_in_range() -> None:
    scene = draw_scene((Circle(80, 80, 40), Circle(200, 150, 60)), seed=3)
    (detections,) = load_detector("hough").detect([scene.image])
    scores = [detection.score for detection in detections]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_held_out_photographs(coins_val: Path) -> None:
    """F1 of at least 0.85 at IoU 0.5; measured 0.92."""
    counts = Counts()
    for annotated in load_dataset(coins_val).images:
        detections = detect(decode_image(annotated.path.read_bytes(), 10**8))
        counts += count_matches([d.bbox for d in detections], [t.bbox for t in annotated.truth], min_iou=0.5)
    assert counts.f1 >= 0.85
