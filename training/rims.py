"""Strips for the rim network: round things unrolled around guesses that are a little wrong, and places without any."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from circles.detectors.rim import PLACES, RAY_COUNT, REACHES, STEP_COUNT, UNIT_CIRCLE, axes_of, unroll
from circles.geometry import Ellipse
from training.augment import photograph
from training.mixture import Mixture, scene_sample
from training.samples import Outline, Sample, SampleObject

_SIDES_PX = (256, 320, 448)
_SAMPLES = 6
_SCENE_CHANCE = 0.4
_MAX_OBJECTS = 10  # of a sample, so that no crowded one fills the batch
_MAX_DECOYS = 4
_MIN_RADIUS_PX = 7.0
_MAX_HIDDEN = 0.6


@dataclass(frozen=True, slots=True)
class RimBatch:
    """Strips, and what should be said of them."""

    strips: Tensor
    """(N, rays, steps, 4) uint8."""
    places: Tensor
    """(N, rays): where the rim lies along the ray, in steps from the strip's first."""
    is_counted: Tensor
    """(N, rays): whether it lies in the strip and in the picture, and is known."""
    is_round: Tensor
    """(N,): whether a round thing is there; NaN where that is open."""

    look: Tensor
    """(N,): index of the look in ``REACHES``."""

    def at(self, look: int) -> "RimBatch":
        """The part of this look."""
        return RimBatch(**{each.name: getattr(self, each.name)[self.look == look] for each in fields(self)})

    def to(self, device: torch.device) -> "RimBatch":
        """The same on this device."""
        return RimBatch(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})


class RimMixture(Dataset[RimBatch]):
    """Item ``n`` is the batch of step ``n``."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self._mixture = mixture
        self._seed = seed

    def __getitem__(self, step: int) -> RimBatch:
        rng = np.random.default_rng((self._seed, 1, step))
        strips, places, is_counted, is_round, looks = [], [], [], [], []
        for _ in range(_SAMPLES):
            side_px = int(rng.choice(_SIDES_PX))
            is_scene = rng.random() < _SCENE_CHANCE
            sample = scene_sample(side_px, rng) if is_scene else self._mixture.sample(side_px, rng)
            sample.image = photograph(sample.image, rng)
            for each in _guesses(sample, rng):
                (strip,) = unroll(sample.image, [each.ellipse], REACHES[each.look])
                place, counted = _places(each, strip)
                strips.append(strip)
                places.append(place)
                is_counted.append(counted)
                is_round.append(each.verdict)
                looks.append(each.look)
        return RimBatch(
            torch.from_numpy(np.stack(strips)),
            torch.from_numpy(np.stack(places)).float(),
            torch.from_numpy(np.stack(is_counted)),
            torch.tensor(is_round, dtype=torch.float32),
            torch.tensor(looks),
        )


@dataclass(frozen=True, slots=True)
class _Guess:
    """Where a thing is thought to be, and what should be said of it."""

    ellipse: Ellipse
    look: int
    rim: Outline | None
    """None where it is not known, or there is none."""
    verdict: float
    """1 for round, 0 for not, NaN for either."""


def _guesses(sample: Sample, rng: np.random.Generator) -> list[_Guess]:
    side = sample.image.shape[0]
    usable = [each for each in sample.objects if _is_usable(each, side)]
    guesses: list[_Guess] = []
    wide, near = range(len(REACHES))
    for index in rng.permutation(len(usable))[:_MAX_OBJECTS]:
        each = usable[index]
        rim = each.outline if each.has_rim else None
        ellipse = _ellipse_of(each.outline)
        box = ellipse.bbox()
        if not ellipse.part_outside(side, side):  # as the heat map guesses: no more than a box is known
            boxed = Ellipse(ellipse.center_x, ellipse.center_y, box.width / 2, box.height / 2, 0.0)
            guesses.append(_Guess(_jittered(boxed, 0.05, rng), wide, rim, 1.0))
        elif rng.random() < 0.5:  # or a circle
            radius = float(np.sqrt(ellipse.axis_a * ellipse.axis_b))
            circle = Ellipse(ellipse.center_x, ellipse.center_y, radius, radius, 0.0)
            guesses.append(_Guess(_jittered(circle, 0.08, rng), wide, rim, 1.0))
        else:  # or as a wide look left it, since cut ones have two
            guesses.append(_Guess(_jittered(ellipse, 0.04, rng), wide, rim, 1.0))
        # A rim annotated by hand is no teacher of parts of px; a thing without a known rim still tells what is round.
        if rim is None or each.is_exact:
            guesses.append(_Guess(_jittered(ellipse, 0.015, rng), near, rim, 1.0))
        if rng.random() < 0.4:  # some ring in the thing, or about it, or beside it
            scale = float(rng.choice((rng.uniform(0.3, 0.75), rng.uniform(1.35, 2.0), 1.0)))
            shift = rng.uniform(0.5, 1.2) * ellipse.axis_a if scale == 1.0 else 0.0
            turn = rng.uniform(0, 2 * np.pi)
            wrong = Ellipse(
                ellipse.center_x + shift * float(np.cos(turn)),
                ellipse.center_y + shift * float(np.sin(turn)),
                ellipse.axis_a * scale,
                ellipse.axis_b * scale,
                ellipse.angle,
            )
            wrong = _jittered(wrong, 0.02, rng)
            guesses.append(_Guess(wrong, int(rng.integers(len(REACHES))), None, _verdict(wrong, sample)))
    for index in rng.permutation(len(sample.decoys))[:_MAX_DECOYS]:
        box = sample.decoys[index]
        if min(box.width, box.height) >= 2 * _MIN_RADIUS_PX:
            x, y = (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2
            decoy = _jittered(Ellipse(x, y, box.width / 2, box.height / 2, 0.0), 0.05, rng)
            guesses.append(_Guess(decoy, int(rng.integers(len(REACHES))), None, _verdict(decoy, sample)))
    for _ in range(3):
        radius = float(np.exp(rng.uniform(np.log(5), np.log(0.4 * side))))
        x, y = rng.uniform(0, side, 2).tolist()
        nowhere = _jittered(Ellipse(x, y, radius, radius, 0.0), 0.1, rng)
        guesses.append(_Guess(nowhere, int(rng.integers(len(REACHES))), None, _verdict(nowhere, sample)))
    return guesses


def _is_usable(each: SampleObject, side: int) -> bool:
    low, high = each.outline.min(axis=0), each.outline.max(axis=0)
    center = (low + high) / 2
    return bool(
        each.is_whole
        and each.hidden <= _MAX_HIDDEN
        and (high - low).min() >= 2 * _MIN_RADIUS_PX
        and np.all((center > -0.2 * (high - low)) & (center < side + 0.2 * (high - low)))
    )


def _verdict(guess: Ellipse, sample: Sample) -> float:
    """0 where the guess is far from every object, else open."""
    box = guess.bbox()
    for each in sample.objects:
        low, high = each.outline.min(axis=0), each.outline.max(axis=0)
        shared = np.prod(
            np.clip(np.minimum(high, (box.x_max, box.y_max)) - np.maximum(low, (box.x_min, box.y_min)), 0, None)
        )
        if shared > 0.35 * (box.area + np.prod(high - low) - shared):
            return float("nan")
    return 0.0


def _jittered(ellipse: Ellipse, spread: float, rng: np.random.Generator) -> Ellipse:
    radius = np.sqrt(ellipse.axis_a * ellipse.axis_b)
    move = radius * spread * rng.normal(size=2)
    grow = 1 + np.clip(spread * rng.normal(size=2), -0.2, 0.2)
    return Ellipse(
        float(ellipse.center_x + move[0]),
        float(ellipse.center_y + move[1]),
        float(ellipse.axis_a * grow[0]),
        float(ellipse.axis_b * grow[1]),
        float(ellipse.angle + spread * rng.normal()),
    )


def _ellipse_of(outline: Outline) -> Ellipse:
    """The ellipse of the outline's second moments."""
    center = outline.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov((outline - center).T, bias=True))
    axis_b, axis_a = np.sqrt(2 * np.maximum(variances, 1e-6))
    angle = float(np.arctan2(directions[1, 1], directions[0, 1]))
    return Ellipse(float(center[0]), float(center[1]), float(axis_a), float(axis_b), angle)


def _places(guess: _Guess, strip: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Where the rim crosses the guess's rays, in steps; and whether a ray counts."""
    if guess.rim is None:
        return np.zeros(RAY_COUNT), np.zeros(RAY_COUNT, np.bool_)
    ellipse = guess.ellipse
    local = (guess.rim - (ellipse.center_x, ellipse.center_y)) @ np.linalg.inv(axes_of(ellipse)).T
    angles, distances = np.arctan2(local[:, 1], local[:, 0]), np.hypot(local[:, 0], local[:, 1])
    order = np.argsort(angles)
    at = np.interp(np.arctan2(UNIT_CIRCLE[:, 1], UNIT_CIRCLE[:, 0]), angles[order], distances[order], period=2 * np.pi)
    steps = ((at - 1) / REACHES[guess.look] - PLACES[0]) / (PLACES[1] - PLACES[0])
    is_in_strip = (steps >= 0) & (steps <= STEP_COUNT - 1)
    column = np.clip(np.round(steps), 0, STEP_COUNT - 1).astype(int)
    return steps, is_in_strip & (strip[np.arange(RAY_COUNT), column, 3] > 0)
