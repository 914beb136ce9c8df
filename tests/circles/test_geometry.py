"""Overlap of boxes and circles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circles.geometry import BBox, Circle, Ellipse, FloatArray, pairwise_bbox_iou, pairwise_circle_iou


def rows(*values: tuple[float, ...]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def test_bbox_iou_by_hand() -> None:
    a = rows((0, 0, 10, 10))
    b = rows((0, 0, 10, 10), (5, 0, 15, 10), (10, 0, 20, 10), (2, 2, 4, 4))
    # Half of each shared: 50 of 150. Touching edges share nothing. 4 of 100 inside.
    np.testing.assert_allclose(pairwise_bbox_iou(a, b), [[1, 1 / 3, 0, 0.04]])


def test_bbox_iou_of_empty_sets_and_empty_boxes() -> None:
    empty = np.empty((0, 4))
    assert pairwise_bbox_iou(empty, rows((0, 0, 1, 1))).shape == (0, 1)
    assert pairwise_bbox_iou(rows((0, 0, 1, 1)), empty).shape == (1, 0)
    assert pairwise_bbox_iou(rows((3, 3, 3, 3)), rows((3, 3, 3, 3))) == 0


def test_circle_iou_by_hand() -> None:
    unit = rows((0, 0, 1))
    others = rows((0, 0, 1), (0, 0, 0.5), (2, 0, 1), (5, 0, 1), (1, 0, 1))
    lens = 2 * math.pi / 3 - math.sqrt(3) / 2  # two unit circles through each other's centers
    expected = [[1, 0.25, 0, 0, lens / (2 * math.pi - lens)]]
    np.testing.assert_allclose(pairwise_circle_iou(unit, others), expected, atol=1e-12)


def test_circle_iou_refuses_radius_zero() -> None:
    with pytest.raises(ValueError, match="radius must be positive"):
        pairwise_circle_iou(rows((0, 0, 1)), rows((0, 0, 0)))


coordinate = st.floats(-100, 100)
circle = st.tuples(coordinate, coordinate, st.floats(0.1, 50))


@given(st.lists(circle, max_size=5), st.lists(circle, max_size=5))
def test_circle_iou_is_symmetric_and_bounded(a: list[tuple[float, ...]], b: list[tuple[float, ...]]) -> None:
    circles_a, circles_b = np.array(a).reshape(-1, 3), np.array(b).reshape(-1, 3)
    ious = pairwise_circle_iou(circles_a, circles_b)
    assert ious.shape == (len(a), len(b))
    assert np.all((ious >= 0) & (ious <= 1))
    np.testing.assert_allclose(ious, pairwise_circle_iou(circles_b, circles_a).T, atol=1e-9)


@given(circle, circle)
def test_circle_iou_agrees_with_counting_pixels(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    """On a grid of 400 x 400 samples around both; the tolerance is that grid's own error."""
    xs = np.linspace(min(a[0] - a[2], b[0] - b[2]), max(a[0] + a[2], b[0] + b[2]), 400)
    ys = np.linspace(min(a[1] - a[2], b[1] - b[2]), max(a[1] + a[2], b[1] + b[2]), 400)
    grid_x, grid_y = np.meshgrid(xs, ys)
    in_a, in_b = (np.hypot(grid_x - x, grid_y - y) <= radius for x, y, radius in (a, b))
    joint = np.sum(in_a | in_b)
    if joint < 2000:  # two small circles far apart: the grid is too coarse for them
        return
    assert pairwise_circle_iou(rows(a), rows(b))[0, 0] == pytest.approx(np.sum(in_a & in_b) / joint, abs=0.05)


def test_bbox_is_clipped_to_the_image() -> None:
    assert Circle(5, 5, 10).bbox().clip(20, 12) == BBox(0, 0, 15, 12)
    assert BBox(30, 30, 40, 40).clip(20, 12).area == 0


@pytest.mark.parametrize(
    ("center_x", "part"), [(30, 0.0), (20, 0.0), (0, 0.5), (95, 0.375), (-20, 1.0), (-500, 1.0)], ids=str
)
def test_part_of_an_ellipse_outside_the_image(center_x: float, part: float) -> None:
    """Of its box, 40 px wide, in an image 100 px wide; exactly nothing when it touches the border from inside."""
    assert Ellipse(center_x, 50, 20, 10, 0.0).part_outside(100, 100) == part
