"""Where exactly the rim of a round thing runs: the picture unrolled along rays, and the ellipse through what is there.

Rays go from the center of a guess through its rim. In the frame where the guess is the unit circle, a rim that differs
a little from it lies, along the ray at angle t, at the distance

    1 + dx cos t + dy sin t + dr + e cos 2t + f sin 2t,

so that moving, growing and flattening the guess is a linear model, fitted by least squares.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from circles.geometry import Ellipse, FloatArray
from circles.imaging import RGBImage

RAY_COUNT = 32
STEP_COUNT = 32
REACHES = (0.3, 0.08)
"""How far before and behind the guess's rim a strip reaches, part of the radius: at a wide look and at a near one."""

_ANGLES = np.linspace(0.0, 2 * np.pi, RAY_COUNT, endpoint=False)
UNIT_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
"""(rays, 2)."""

PLACES = (np.arange(STEP_COUNT) + 0.5) / STEP_COUNT * 2 - 1
"""(steps,) places along a ray, from the guess's rim, in reaches."""

_TERMS = np.column_stack([UNIT_CIRCLE, np.ones(RAY_COUNT), np.cos(2 * _ANGLES), np.sin(2 * _ANGLES)])  # (rays, 5)
_PRODUCTS = (_TERMS[:, :, None] * _TERMS[:, None, :]).reshape(RAY_COUNT, 25)
_MAX_STEP_PX = 1.2  # larger things are unrolled from a picture reduced so far
_WINDOWS = (0.3, 0.2, 0.12, 0.08, 0.05, 0.05)
"""How far the rim may lie from where it is thought to be, one standard deviation, from fit to fit; in reaches."""
_LEAST_DEVIATION = 0.02  # of the rim on a ray, in reaches: a third of a step
_DOUBTS = ((0.05, 0.05, 0.05, 0.05, 0.25), (0.02, 0.02, 0.02, 0.02, 0.02))
"""How wrong a guess may be at a wide look and at a near one, one standard deviation of dx, dy, dr, e and f, in parts of
the radius.

The first guess is mostly an ellipse in a box, which the heat map places well; of a tilt between the axes a box says
nothing.
"""

Strips = NDArray[np.uint8]
"""(N, rays, steps, 4): RGB, and 255 where the place lies in the picture."""


def unroll(image: RGBImage, guesses: Sequence[Ellipse], reach: float) -> Strips:
    """The picture along the rays of every guess, from ``1 - reach`` to ``1 + reach`` times the way to its rim."""
    strips = np.zeros((len(guesses), RAY_COUNT, STEP_COUNT, 4), np.uint8)
    for strip, guess in zip(strips, guesses, strict=True):
        _unroll(image, guess, reach, strip)
    return strips


def fit(guesses: Sequence[Ellipse], logits: NDArray[np.float32], look: int) -> list[Ellipse]:
    """The guesses moved onto their rims.

    Args:
        look: Which one it was: index into ``REACHES``.
        logits: (N, rays, steps): log-odds, up to a constant for each ray, that the rim lies at the step.
    """
    if not guesses:
        return []
    likelihoods = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64))
    likelihoods /= likelihoods.sum(axis=-1, keepdims=True)
    reach = REACHES[look]
    prior = np.diag((np.array(_DOUBTS[look]) / reach) ** -2)
    moves = np.zeros((len(guesses), 5))  # in reaches
    for window in _WINDOWS:
        # Of each ray's likelihood only what lies about the rim so far counts: seen through a Gaussian window, whose own
        # share in the mean and variance of what is seen is then taken out again.
        residuals = PLACES - (moves @ _TERMS.T)[..., None]  # (N, rays, steps)
        shares = likelihoods * np.exp(-0.5 * (residuals / window) ** 2) + 1e-12
        mass = shares.sum(axis=-1)
        mean = (shares * residuals).sum(axis=-1) / mass
        variance = np.maximum((shares * residuals**2).sum(axis=-1) / mass - mean**2, _LEAST_DEVIATION**2)
        # Cauchy's weights: where most rays agree, the others follow another thing's edge and lose their say.
        usual = np.maximum(np.median(np.abs(mean), axis=-1, keepdims=True), _LEAST_DEVIATION)
        weights = mass / (1 + (mean / (2 * usual)) ** 2)
        precision = weights * np.maximum(1 / variance - 1 / window**2, 0.0)
        pull = weights * mean / variance
        normal = (precision @ _PRODUCTS).reshape(-1, 5, 5) + prior
        step = (pull @ _TERMS - moves @ prior)[..., None]
        moves = moves + np.linalg.solve(normal, step)[..., 0]
    return [_moved(guess, reach * move) for guess, move in zip(guesses, moves, strict=True)]


def axes_of(ellipse: Ellipse) -> FloatArray:
    """(2, 2): what makes the ellipse of the unit circle, as columns."""
    cosine, sine = np.cos(ellipse.angle), np.sin(ellipse.angle)
    return np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([ellipse.axis_a, ellipse.axis_b])


def _unroll(image: RGBImage, guess: Ellipse, reach: float, strip: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    reach_px = (1 + reach) * max(guess.axis_a, guess.axis_b) + 2
    left, top = (max(0, int(center - reach_px)) for center in (guess.center_x, guess.center_y))
    right, bottom = (int(center + reach_px) + 1 for center in (guess.center_x, guess.center_y))
    part = image[top : max(bottom, top), left : max(right, left)]
    if part.size == 0:
        return
    scale = min(1.0, _MAX_STEP_PX * STEP_COUNT / (2 * reach * float(np.sqrt(guess.axis_a * guess.axis_b))))
    scales = np.ones(2)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in (part.shape[1], part.shape[0])]
        scales = np.array([size[0] / part.shape[1], size[1] / part.shape[0]])
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    rays = UNIT_CIRCLE @ axes_of(guess).T
    places = (guess.center_x, guess.center_y) + (1 + reach * PLACES)[None, :, None] * rays[:, None, :]
    on_part = ((places - (left, top)) * scales - 0.5).astype(np.float32)
    strip[..., :3] = cv2.remap(
        part, on_part[..., 0], on_part[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    strip[..., 3] = 255 * np.all((places >= 0) & (places <= (width, height)), axis=-1)


def _moved(guess: Ellipse, move: FloatArray) -> Ellipse:
    dx, dy, dr, e, f = move
    axes = axes_of(guess)
    center = np.array([guess.center_x, guess.center_y]) + axes @ np.array([dx, dy])
    directions, lengths, _ = np.linalg.svd(axes @ np.array([[1 + dr + e, f], [f, 1 + dr - e]]))
    angle = float(np.arctan2(directions[1, 0], directions[0, 0]))
    return Ellipse(float(center[0]), float(center[1]), float(lengths[0]), float(lengths[1]), angle)
