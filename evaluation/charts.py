"""The report's charts, as SVG text to stand in a page."""

import io
import math
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.average_precision import RECALL_LEVELS, precision_at_recall
from evaluation.scores import Scores

_RIGHT, _WRONG = "#2a7f4f", "#c93434"
_BINS = 20
_CALIBRATION_BINS = 10
mpl.rcParams["svg.hashsalt"] = "charts"  # the same run gives the same bytes


def charts(scores: Scores) -> dict[str, str]:
    """Every chart by its title."""
    return {
        "Precision and recall": _chart(lambda axes: _precision_recall(axes, scores)),
        "Scores of right and wrong detections": _chart(lambda axes: _score_histogram(axes, scores)),
        "Calibration": _chart(lambda axes: _calibration(axes, scores)),
        "Center error": _chart(
            lambda axes: _errors(axes, [e.center_px / e.truth_radius_px for e in scores.circle_errors], "center error")
        ),
        "Radius error": _chart(
            lambda axes: _errors(axes, [e.radius_px / e.truth_radius_px for e in scores.circle_errors], "radius error")
        ),
    }


def _chart(draw: Callable[[Axes], None]) -> str:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def _precision_recall(axes: Axes, scores: Scores) -> None:
    precision = precision_at_recall(scores.matches)  # (T, 101)
    for row, iou in ((0, 0.5), (5, 0.75), (8, 0.9)):
        axes.plot(RECALL_LEVELS, precision[row], label=f"IoU {iou:g}")
    half = scores.counts[0.5]
    axes.plot(half.recall, half.precision, "ko", label=f"at score {scores.min_score:g}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="lower left", frameon=False)


def judged_scores(scores: Scores) -> tuple[list[float], list[float]]:
    """Scores of all detections, of the right ones at IoU 0.5 and of the wrong ones."""
    right: list[float] = []
    wrong: list[float] = []
    for image in scores.matches:
        for detection_score, is_match, is_ignored in zip(
            image.scores, image.is_match[0], image.is_ignored[0], strict=True
        ):
            if not is_ignored:
                (right if is_match else wrong).append(float(detection_score))
    return right, wrong


def _score_histogram(axes: Axes, scores: Scores) -> None:
    right, wrong = judged_scores(scores)
    axes.hist([right, wrong], bins=_BINS, range=(0, 1), stacked=True, color=[_RIGHT, _WRONG], label=["right", "wrong"])
    axes.axvline(scores.min_score, color="black", linestyle=":", label="threshold")
    axes.set(xlabel="score", ylabel="detections")
    axes.legend(frameon=False)


def _calibration(axes: Axes, scores: Scores) -> None:
    """Of the detections with such a score, how many are right? On the diagonal a score is a probability."""
    right, wrong = judged_scores(scores)
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    right_counts, _ = np.histogram(right, edges)
    counts = right_counts + np.histogram(wrong, edges)[0]
    everything = np.array([*right, *wrong])
    is_filled = counts > 0
    means = np.histogram(everything, edges, weights=everything)[0][is_filled] / counts[is_filled]
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.scatter(
        means,
        right_counts[is_filled] / counts[is_filled],
        s=10 + 4 * np.sqrt(counts[is_filled]),
        color=_RIGHT,
    )
    axes.set(xlabel="score", ylabel="part that is right", xlim=(0, 1), ylim=(-0.02, 1.02))


def _errors(axes: Axes, values: Sequence[float], name: str) -> None:
    percent = [100 * value for value in values if math.isfinite(value)]
    axes.hist(percent, bins=_BINS, color=_RIGHT)
    axes.set(xlabel=f"{name}, % of the radius", ylabel="matches")
