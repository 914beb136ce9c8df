"""The short list of detectors; each is imported on demand, so that nobody loads what is not used."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

from circles.detection import DetectorInfo
from circles.detectors.protocol import Detector

logger = logging.getLogger(__name__)

DetectorName = Literal["heatmap", "heatmap-torch", "hough", "dummy"]

# The score from which a detector's answers are shown unless somebody says otherwise.
_MIN_SCORES: dict[DetectorName, float] = {"heatmap": 0.6, "heatmap-torch": 0.6, "hough": 0.3, "dummy": 0.5}


def load_detector(name: DetectorName, threads: int = 1) -> Detector:
    """The detector of this name, ready to detect.

    Where what the learned detector runs on is not installed, it is the classical one, and a warning says so.

    Args:
        threads: That a learned detector's networks compute with.

    Raises:
        KeyError: There is none of this name.
        WeightsError: The learned detector's weights are absent or damaged.
    """
    return _LOADERS[name](threads)


def default_min_score(name: DetectorName) -> float:
    """The score from which this detector's answers are shown by default; loads nothing."""
    return _MIN_SCORES[name]


def detector_info(name: DetectorName) -> DetectorInfo:
    """What ``load_detector`` would say of itself; loads nothing but what tells the weights' version.

    Raises:
        WeightsError: The learned detector's weights are absent.
    """
    from circles.detectors.runtimes import WEIGHTS_FOLDER, weights_version

    is_learned = name in ("heatmap", "heatmap-torch")
    if is_learned and (find_spec("onnxruntime") or find_spec("torch")):
        return DetectorInfo("heatmap", weights_version(WEIGHTS_FOLDER))
    return load_detector("hough" if is_learned else name).info


def _load_heatmap(threads: int) -> Detector:
    from circles.detectors.heatmap import HeatmapDetector
    from circles.detectors.runtimes import OnnxRuntime

    try:
        return HeatmapDetector(OnnxRuntime(threads=threads))
    except ImportError as error:
        logger.warning("PyTorch runs the learned detector, more slowly: %s", error)
        return _load_heatmap_torch(threads)


def _load_heatmap_torch(threads: int) -> Detector:
    from circles.detectors.heatmap import HeatmapDetector

    try:
        from circles.detectors.torch_runtime import TorchRuntime
    except ImportError as error:
        logger.warning("the classical detector stands in for the learned one: %s", error)
        return _load_hough(threads)
    return HeatmapDetector(TorchRuntime.load(threads=threads))


def _load_hough(_threads: int) -> Detector:
    from circles.detectors.hough import HoughDetector

    return HoughDetector()


def _load_dummy(_threads: int) -> Detector:
    from circles.detectors.dummy import DummyDetector

    return DummyDetector()


_LOADERS: dict[DetectorName, Callable[[int], Detector]] = {
    "heatmap": _load_heatmap,
    "heatmap-torch": _load_heatmap_torch,
    "hough": _load_hough,
    "dummy": _load_dummy,
}
