"""What the networks' scores mean: logistic regression on pictures that neither network was trained on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from circles.detectors.heatmap import HeatmapDetector
from circles.detectors.runtimes import Calibration
from evaluation.metrics import match_bboxes
from training.validation import Picture

_MIN_IOU = 0.5
# Of the coefficients, each in spreads of what it weighs: few pictures must not make the scores surer than they are.
_SHRINKAGE = 1e-2


def calibrate(detector: HeatmapDetector, sets: Sequence[Sequence[Picture]]) -> Calibration:
    """The calibration under which a detection's score is the chance that it matches an object at IoU 0.5.

    Args:
        detector: Its own calibration says which rims are looked at once more, and nothing else.
        sets: Pictures; each set counts as much as any other.
    """
    rows: list[tuple[float, ...]] = []
    is_right: list[bool] = []
    weights: list[float] = []
    for pictures in sets:
        start = len(rows)
        for picture in pictures:
            evidence = detector.evidence(picture.image)
            matched = {m.detection_index for m in match_bboxes([e.bbox for e in evidence], picture.bboxes, _MIN_IOU)}
            rows += [(1.0, each.heat_logit, each.rim_logit, each.part_cut) for each in evidence]
            is_right += [index in matched for index in range(len(evidence))]
        weights += [1 / max(len(rows) - start, 1)] * (len(rows) - start)
    return Calibration(*_logistic_regression(np.array(rows), np.array(is_right), np.array(weights)))


def _logistic_regression(
    rows: NDArray[np.float64], is_right: NDArray[np.bool_], weights: NDArray[np.float64]
) -> list[float]:
    """Coefficients by maximum likelihood, none of the two networks' negative: surer never means less likely."""
    signs = np.where(is_right, -1.0, 1.0)
    spreads = rows.std(axis=0)  # 0 of the first, constant column: the bias is not shrunk

    def cost(coefficients: NDArray[np.float64]) -> float:
        likelihood = np.average(np.logaddexp(0, signs * (rows @ coefficients)), weights=weights)
        return float(likelihood + _SHRINKAGE * ((coefficients * spreads) ** 2).sum())

    bounds = [(None, None), (0, None), (0, None), (None, None)]
    solution = minimize(cost, np.array([0.0, 1.0, 0.5, 0.0]), bounds=bounds)
    coefficients: list[float] = solution.x.round(4).tolist()
    return coefficients
