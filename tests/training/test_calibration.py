"""Scores mean what they say: the calibration finds again what evidence was made with."""

import numpy as np
import pytest

from circles.detectors.heatmap import Evidence, HeatmapDetector
from circles.detectors.runtimes import Calibration, OnnxRuntime
from circles.geometry import BBox, Ellipse
from circles.imaging import RGBImage
from training.calibration import calibrate
from training.validation import Picture

SIDE_PX = 400
CELL_PX = 20


class KnownEvidence(HeatmapDetector):
    """Says of each picture what it was told to."""

    def __init__(self, pictures: list[tuple[Picture, list[Evidence]]]) -> None:
        super().__init__(OnnxRuntime())
        self._known = {picture.image.tobytes(): evidence for picture, evidence in pictures}

    def evidence(self, image: RGBImage) -> list[Evidence]:
        return self._known[image.tobytes()]


def chance(meaning: Calibration, heat: float, rim: float, cut: float) -> float:
    """That a detection is right, written out."""
    return float(1 / (1 + np.exp(-(meaning.bias + meaning.heat * heat + meaning.rim * rim + meaning.cut * cut))))


def made_up(number: int, meaning: Calibration, rng: np.random.Generator) -> tuple[Picture, list[Evidence]]:
    """A picture with evidence in every cell of a grid, each right as often as ``meaning`` says."""
    evidence, bboxes = [], []
    for x in range(0, SIDE_PX, CELL_PX):
        for y in range(0, SIDE_PX, CELL_PX):
            heat, rim, cut = rng.normal(0, 1.5), rng.normal(0, 4), max(0.0, rng.uniform(-0.6, 0.6))
            bbox = BBox(x, y, x + CELL_PX, y + CELL_PX)
            radius = CELL_PX / 2
            ellipse = Ellipse(x + radius, y + radius, radius, radius, 0.0)
            evidence.append(Evidence(ellipse, bbox, heat, rim, cut))
            if rng.random() < chance(meaning, heat, rim, cut):
                bboxes.append(bbox)
    return Picture(np.full((SIDE_PX, SIDE_PX, 3), number, np.uint8), tuple(bboxes)), evidence


@pytest.mark.parametrize(
    "meaning",
    [Calibration(-1.0, 1.3, 0.3, 2.5), Calibration(-2.0, 0.6, 0.1, -3.0)],
    ids=["cut is right", "cut is wrong"],
)
def test_calibrated_scores_are_chances(meaning: Calibration) -> None:
    """To 0.1: coefficients are shrunk. What the border cuts makes a difference of 0.3 in the middle."""
    rng = np.random.default_rng(1)
    pictures = [made_up(number, meaning, rng) for number in range(10)]
    found = calibrate(KnownEvidence(pictures), [[picture for picture, _ in pictures]])
    for heat in (-2.0, 0.0, 2.0):
        for rim in (-4.0, 0.0, 4.0):
            for cut in (0.0, 0.5):
                assert found.score(heat, rim, cut) == pytest.approx(chance(meaning, heat, rim, cut), abs=0.1)


def test_networks_that_mislead_are_not_listened_to() -> None:
    """Surer never means less likely, whatever few pictures seem to say."""
    rng = np.random.default_rng(2)
    pictures = [made_up(number, Calibration(0.0, -1.0, -0.3), rng) for number in range(3)]
    found = calibrate(KnownEvidence(pictures), [[picture for picture, _ in pictures]])
    assert (found.heat, found.rim) == (0, 0)


def test_every_set_counts_alike() -> None:
    """A tenth of the pictures, in a set of their own, moves the scores as much as all others."""
    rng = np.random.default_rng(3)
    often = [made_up(number, Calibration(1.5, 1.0, 0.3), rng) for number in range(9)]
    seldom = [made_up(200, Calibration(-1.5, 1.0, 0.3), rng)]
    detector = KnownEvidence([*often, *seldom])
    found = calibrate(detector, [[picture for picture, _ in often], [picture for picture, _ in seldom]])
    assert found.score(0.0, 0.0, 0.0) == pytest.approx(0.5, abs=0.05)
