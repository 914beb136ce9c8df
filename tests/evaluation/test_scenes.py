"""Drawn scenes: repeatable, and true to a hundredth of a px."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scenes import PLAIN, SceneOptions, _Canvas, _coverage, _Ellipse, draw_scene


def test_same_seed_same_scene() -> None:
    first, again, other = draw_scene(5), draw_scene(5), draw_scene(6)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert first.objects != other.objects


@given(
    center=st.tuples(st.floats(35, 45), st.floats(35, 45)),
    axes=st.tuples(st.floats(16, 32), st.floats(0.75, 1)),  # no scene tilts further
    angle=st.floats(0, np.pi),
)
def test_drawn_outlines_are_where_the_truth_is(
    center: tuple[float, float], axes: tuple[float, float], angle: float
) -> None:
    """Area, centroid and extent of what is painted are the ellipse's, to 0.015 px of its outline."""
    ellipse = _Ellipse(*center, axes[0], axes[0] * axes[1], angle)
    canvas = _Canvas(80, 80)
    window = (slice(0, 80), slice(0, 80))
    xs, ys = canvas.grid(window)
    canvas.paint(window, _coverage(ellipse.distance(*ellipse.local(xs, ys))), np.ones(3, np.float32))
    painted = canvas.pixels[..., 0].astype(np.float64)
    area = painted.sum()
    perimeter = 2 * np.pi * axes[0]
    assert area == pytest.approx(np.pi * ellipse.axis_a * ellipse.axis_b, abs=0.015 * perimeter)
    assert (painted * xs).sum() / area == pytest.approx(center[0], abs=0.015)
    assert (painted * ys).sum() / area == pytest.approx(center[1], abs=0.015)
    touched = np.argwhere(painted > 0)
    bbox = ellipse.bbox()
    for lowest, highest, seen in (
        (bbox.x_min, bbox.x_max, touched[:, 1]),
        (bbox.y_min, bbox.y_max, touched[:, 0]),
    ):
        assert seen.min() == pytest.approx(lowest, abs=1.5)
        assert seen.max() + 1 == pytest.approx(highest, abs=1.5)


def test_objects_lie_in_the_picture_as_far_as_options_say() -> None:
    for seed in range(20):
        whole = draw_scene(seed, replace(PLAIN, width=160, height=120))
        for drawn in whole.objects:
            assert drawn.bbox.x_min >= 0
            assert drawn.bbox.x_max <= 160
            square = drawn.circle.bbox()
            np.testing.assert_allclose(drawn.bbox.as_tuple(), square.as_tuple(), atol=1e-6)
    sizes = {len(draw_scene(seed, SceneOptions(objects=(0, 0))).objects) for seed in range(3)}
    assert sizes == {0}
