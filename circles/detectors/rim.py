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

_STEPS = PLACES.astype(np.float32)
_TERMS = np.column_stack([UNIT_CIRCLE, np.ones(RAY_COUNT), np.cos(2 * _ANGLES), np.sin(2 * _ANGLES)])  # (rays, 5)
_PRODUCTS = (_TERMS[:, :, None] * _TERMS[:, None, :]).reshape(RAY_COUNT, 25)
_STEP_PX = 1.2  # larger things are unrolled from the picture halved until a step is about so long
_MAX_SIDE_PX = 32_000  # of what cv2.remap reads
_WINDOWS = (0.3, 0.2, 0.12, 0.08, 0.05)
"""How far the rim may lie from where it is thought to be, one standard deviation, from fit to fit; in reaches."""
_LEAST_DEVIATION = 0.02  # of the rim on a ray, in reaches: a third of a step
DOUBTS = ((0.05, 0.05, 0.05, 0.05, 0.25), (0.02, 0.02, 0.02, 0.02, 0.02))
"""How wrong a guess may be at a wide look and at a near one, one standard deviation of dx, dy, dr, e and f, in parts of
the radius.

The first guess is mostly an ellipse in a box, which the heat map places well; of a tilt between the axes a box says
nothing.
"""

CUT_DOUBTS = (0.4, 0.4, 0.4, 0.4, 0.4)
"""Likewise where the picture's border cuts a thing: of what lies beyond the heat map knows little."""

Strips = NDArray[np.uint8]
"""(N, rays, steps, 4): RGB, and 255 where the place lies in the picture."""


def unroll(image: RGBImage, guesses: Sequence[Ellipse], reach: float) -> Strips:
    """The picture along the rays of every guess, from ``1 - reach`` to ``1 + reach`` times the way to its rim."""
    strips = np.zeros((len(guesses), RAY_COUNT, STEP_COUNT, 4), np.uint8)
    if not guesses:
        return strips
    height, width = image.shape[:2]
    centers = np.array([(guess.center_x, guess.center_y) for guess in guesses])
    axes = _axes(guesses)
    rays = UNIT_CIRCLE @ axes.transpose(0, 2, 1)  # (N, rays, 2)
    places = centers[:, None, None] + (1 + reach * PLACES)[:, None] * rays[:, :, None]  # (N, rays, steps, 2)
    steps_px = 2 * reach / STEP_COUNT * np.sqrt(np.abs(np.linalg.det(axes)))
    least = max(0, int(np.ceil(np.log2(max(width, height) / _MAX_SIDE_PX))))
    halvings = np.maximum(np.round(np.log2(steps_px / _STEP_PX)), least).astype(int)  # (N,)
    halved = image
    for times in range(halvings.max() + 1):
        if times:
            halved = _half(halved)
        at = halvings == times
        if at.any():
            on_halved = (places[at] * 0.5**times - 0.5).astype(np.float32).reshape(-1, RAY_COUNT * STEP_COUNT, 2)
            x, y = on_halved.transpose(2, 0, 1)
            colors = cv2.remap(halved, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            strips[at, ..., :3] = colors.reshape(-1, RAY_COUNT, STEP_COUNT, 3)
    is_inside = (places >= 0) & (places <= (width, height))
    strips[..., 3] = np.where(is_inside[..., 0] & is_inside[..., 1], 255, 0)
    return strips


def fit(
    guesses: Sequence[Ellipse],
    strips: Strips,
    logits: NDArray[np.float32],
    reach: float,
    doubts: Sequence[float],
) -> list[Ellipse]:
    """The guesses moved onto their rims.

    Args:
        strips: What was looked at. Where it lies beyond the picture's border no rim is seen, whatever the logits say.
        logits: (N, rays, steps): log-odds, up to a constant for each ray, that the rim lies at the step.
        reach: Of the strips, as ``unroll`` was told.
        doubts: How wrong the guesses may be, as ``DOUBTS`` says.
    """
    if not guesses:
        return []
    # In single precision, which halves the time and moves no rim by a thousandth of a reach.
    likelihoods = np.exp(logits - logits.max(axis=-1, keepdims=True))
    likelihoods *= (strips[..., 3] > 0) / likelihoods.sum(axis=-1, keepdims=True)
    prior = np.diag((np.array(doubts) / reach) ** -2)
    moves = np.zeros((len(guesses), 5))  # in reaches
    for window in _WINDOWS:
        # Of each ray's likelihood only what lies about the rim so far counts: seen through a Gaussian window, whose own
        # share in the mean and variance of what is seen is then taken out again.
        residuals = _STEPS - (moves @ _TERMS.T).astype(np.float32)[..., None]  # (N, rays, steps)
        shares = likelihoods * np.exp(residuals * residuals * np.float32(-0.5 / window**2)) + np.float32(1e-12)
        mass = (shares @ np.ones(STEP_COUNT, np.float32)).astype(np.float64)  # (N, rays), as all that follows
        mean = np.einsum("nrs,nrs->nr", shares, residuals) / mass
        mean_square = np.einsum("nrs,nrs->nr", shares * residuals, residuals) / mass
        variance = np.maximum(mean_square - mean**2, _LEAST_DEVIATION**2)
        # Cauchy's weights: where most rays agree, the others follow another thing's edge and lose their say.
        usual = np.maximum(_median(np.abs(mean)), _LEAST_DEVIATION)
        weights = mass / (1 + (mean / (2 * usual)) ** 2)
        precision = weights * np.maximum(1 / variance - 1 / window**2, 0.0)
        pull = weights * mean / variance
        normal = (precision @ _PRODUCTS).reshape(-1, 5, 5) + prior
        step = (pull @ _TERMS - moves @ prior)[..., None]
        moves = moves + np.linalg.solve(normal, step)[..., 0]
    return _moved(guesses, reach * moves)


def axes_of(ellipse: Ellipse) -> FloatArray:
    """(2, 2): what makes the ellipse of the unit circle, as columns."""
    axes: FloatArray = _axes([ellipse])[0]
    return axes


def _axes(ellipses: Sequence[Ellipse]) -> FloatArray:
    """(N, 2, 2): ``axes_of`` each."""
    a, b, angles = np.array([(e.axis_a, e.axis_b, e.angle) for e in ellipses]).T
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.stack([a * cosines, -b * sines, a * sines, b * cosines], axis=-1).reshape(-1, 2, 2)


def _half(image: RGBImage) -> RGBImage:
    """The picture at half its size, without the last row and column of what has an odd number of them."""
    width, height = (max(1, side // 2) for side in (image.shape[1], image.shape[0]))
    even = image[: 2 * height, : 2 * width]
    return cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _median(values: FloatArray) -> FloatArray:
    """(N, 1): the median of every row of an even number, without the many steps that NumPy's takes for few rows."""
    middle = np.sort(values, axis=-1)[:, RAY_COUNT // 2 - 1 : RAY_COUNT // 2 + 1]
    median: FloatArray = middle.mean(axis=-1, keepdims=True)
    return median


def _moved(guesses: Sequence[Ellipse], moves: FloatArray) -> list[Ellipse]:
    dx, dy, dr, e, f = moves.T
    axes = _axes(guesses)
    centers = np.array([(guess.center_x, guess.center_y) for guess in guesses])
    centers = centers + (axes @ np.stack([dx, dy], axis=-1)[..., None])[..., 0]
    stretches = np.stack([1 + dr + e, f, f, 1 + dr - e], axis=-1).reshape(-1, 2, 2)
    directions, lengths, _ = np.linalg.svd(axes @ stretches)
    angles = np.arctan2(directions[:, 1, 0], directions[:, 0, 0])
    return [Ellipse(*row) for row in np.column_stack([centers, lengths, angles]).tolist()]
