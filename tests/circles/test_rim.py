"""Unrolling around a guess, and the ellipse through what is seen there."""

import numpy as np
import pytest
from numpy.typing import NDArray

from circles.detectors.rim import (
    CUT_DOUBTS,
    DOUBTS,
    PLACES,
    RAY_COUNT,
    REACHES,
    STEP_COUNT,
    UNIT_CIRCLE,
    axes_of,
    fit,
    unroll,
)
from circles.geometry import Ellipse, FloatArray
from evaluation.scenes import PLAIN, draw_scene


def distances_to(truth: Ellipse, guess: Ellipse) -> FloatArray:
    """Where the guess's rays cross the true rim, in parts of their length to the guess's rim."""
    local = (truth.points(3600) - (guess.center_x, guess.center_y)) @ np.linalg.inv(axes_of(guess)).T
    angles = np.arctan2(local[:, 1], local[:, 0])
    order = np.argsort(angles)
    at = np.arctan2(UNIT_CIRCLE[:, 1], UNIT_CIRCLE[:, 0])
    distances: FloatArray = np.interp(at, angles[order], np.hypot(*local.T)[order], period=2 * np.pi)
    return distances


def sure_logits(truth: Ellipse, guess: Ellipse) -> NDArray[np.float32]:
    """What a network would say that sees the true rim clearly."""
    places = (distances_to(truth, guess) - 1) / REACHES[0]
    step = PLACES[1] - PLACES[0]
    logits: NDArray[np.float32] = (-0.5 * ((PLACES - places[:, None]) / (0.7 * step)) ** 2).astype(np.float32)[None]
    return logits


def all_inside() -> NDArray[np.uint8]:
    """The strip of a guess, no part of which lies beyond the picture's border."""
    return np.full((1, RAY_COUNT, STEP_COUNT, 4), 255, np.uint8)


@pytest.mark.parametrize(
    "guess",
    [
        Ellipse(100, 80, 42, 31, 0.4),
        Ellipse(101.5, 79, 41, 32, 0.45),
        Ellipse(100, 80, 40.5, 33, 0.0),
    ],
    ids=["exact", "near", "the box's"],
)
def test_fit_finds_the_rim_that_the_rays_see(guess: Ellipse) -> None:
    truth = Ellipse(100, 80, 42, 31, 0.4)
    found = guess
    for _ in range(4):
        (found,) = fit([found], all_inside(), sure_logits(truth, found), REACHES[0], DOUBTS[0])
    np.testing.assert_allclose(found.bbox().as_tuple(), truth.bbox().as_tuple(), atol=0.05)
    np.testing.assert_allclose(found.circle().radius, truth.circle().radius, atol=0.05)


def test_rays_that_follow_another_edge_lose_their_say() -> None:
    truth, guess = Ellipse(100, 80, 40, 40, 0.0), Ellipse(101, 80, 40, 40, 0.0)
    logits = sure_logits(truth, guess)
    logits[0, :10] = np.roll(logits[0, :10], 12, axis=-1)
    (found,) = fit([guess], all_inside(), logits, REACHES[0], DOUBTS[0])
    np.testing.assert_allclose((found.center_x, found.center_y, found.circle().radius), (100, 80, 40), atol=0.3)


def test_nothing_seen_leaves_the_guess_where_it_is() -> None:
    guess = Ellipse(50, 60, 20, 15, 0.3)
    (found,) = fit([guess], all_inside(), np.zeros((1, RAY_COUNT, STEP_COUNT), np.float32), REACHES[0], DOUBTS[0])
    np.testing.assert_allclose(found.bbox().as_tuple(), guess.bbox().as_tuple(), atol=0.3)
    (found,) = fit([guess], np.zeros_like(all_inside()), sure_logits(guess, guess) + 9, REACHES[0], CUT_DOUBTS)
    np.testing.assert_allclose(found.bbox().as_tuple(), guess.bbox().as_tuple(), atol=0.3)
    assert fit([], all_inside()[:0], np.zeros((0, RAY_COUNT, STEP_COUNT), np.float32), REACHES[0], DOUBTS[0]) == []


def test_what_is_said_of_places_beyond_the_border_does_not_move_the_rim() -> None:
    """Half a disc is seen; what the network says of the other rays is noise, as sure as can be."""
    truth, guess = Ellipse(0, 80, 40, 40, 0.0), Ellipse(4, 80, 37, 37, 0.0)
    found = guess
    for _ in range(3):
        strips = unroll(np.zeros((160, 200, 3), np.uint8), [found], REACHES[0])
        logits = sure_logits(truth, found)
        is_outside = strips[..., 3] == 0
        logits[is_outside] = np.random.default_rng(0).uniform(0, 20, is_outside.sum())
        (found,) = fit([found], strips, logits, REACHES[0], CUT_DOUBTS)
    np.testing.assert_allclose((found.center_x, found.center_y, found.circle().radius), (0, 80, 40), atol=0.3)


@pytest.mark.parametrize("scale", [1, 4], ids=["as it is", "enlarged"])
def test_strip_shows_the_rim_at_its_middle(scale: int) -> None:
    """Inside and outside of a drawn disc differ, and the change lies at the guess's rim, to a step."""
    scene = draw_scene(54, PLAIN)
    outline = scene.objects[0].outline
    image = np.repeat(np.repeat(scene.image, scale, axis=0), scale, axis=1)
    x, y, a, b = (scale * each for each in (outline.center_x, outline.center_y, outline.axis_a, outline.axis_b))
    (strip,) = unroll(image, [Ellipse(x, y, a, b, outline.angle)], REACHES[0])
    profile = strip[..., :3].astype(float).mean(axis=(0, 2))
    assert abs(int(np.abs(np.diff(profile)).argmax()) + 0.5 - (STEP_COUNT - 1) / 2) <= 1


def test_strip_knows_where_the_picture_ends() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    (strip,) = unroll(image, [Ellipse(0, 50, 30, 30, 0.0)], REACHES[0])
    is_inside = strip[..., 3] > 0
    assert is_inside[0].all()
    assert not is_inside[RAY_COUNT // 2].any()
    (outside,) = unroll(image, [Ellipse(-500, 50, 30, 30, 0.0)], REACHES[0])
    assert not outside[..., 3].any()
