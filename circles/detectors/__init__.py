"""The short list of detectors; each is imported on demand, so that nobody loads what is not used."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

from circles.detection import DetectorInfo
from circles.detectors.protocol import Detector

logger = logging.getLogger(__name__)

DetectorName = Literal["heatmap", "heatmap-torch", "hough", "dummy"]

# The packages that a learned detector runs on, by its name.
_RUNTIMES: dict[DetectorName, tuple[str, ...]] = {
    "heatmap": ("onnxruntime",),
    "heatmap-torch": ("torch", "safetensors"),
}

# The score from which a detector's answers are shown unless somebody says otherwise.
_MIN_SCORES: dict[DetectorName, float] = {"heatmap": 0.6, "heatmap-torch": 0.6, "hough": 0.3, "dummy": 0.5}


def load_detector(name: DetectorName, threads: int = 1) -> Detector:
    """The detector of this name, or the one that stands in for it, ready to detect; a warning tells of the latter.

    Args:
        threads: That a learned detector's networks compute with.

    Raises:
        KeyError: There is none of this name.
        ImportError: A package that it runs on is installed, and cannot be imported.
        WeightsError: The learned detector's weights are absent or damaged.
    """
    installed = installed_detector(name)
    if installed != name:
        packages = " and ".join(_RUNTIMES[name])
        logger.warning("the detector is %s instead of %s: the latter needs %s installed", installed, name, packages)
    return _LOADERS[installed](threads)


def installed_detector(name: DetectorName) -> DetectorName:
    """The detector that is loaded by this name; loads nothing itself.

    Where what a learned detector runs on is not installed, it is the same one on the other runtime, and where neither
    is, the classical one.
    """
    if name not in _RUNTIMES:
        return name
    return next((each for each in (name, *_RUNTIMES) if all(map(find_spec, _RUNTIMES[each]))), "hough")


def default_min_score(name: DetectorName) -> float:
    """The score from which the answers of what is loaded by this name are shown by default; loads nothing.

    Raises:
        KeyError: There is none of this name.
    """
    return _MIN_SCORES[installed_detector(name)]


def detector_info(name: DetectorName) -> DetectorInfo:
    """What ``load_detector`` would say of itself; loads nothing but what tells the weights' version.

    Raises:
        KeyError: There is none of this name.
        WeightsError: The learned detector's weights are absent.
    """
    from circles.detectors.runtimes import WEIGHTS_FOLDER, weights_version

    installed = installed_detector(name)
    if installed in _RUNTIMES:
        return DetectorInfo("heatmap", weights_version(WEIGHTS_FOLDER))
    return load_detector(installed).info


def _load_heatmap(threads: int) -> Detector:
    from circles.detectors.heatmap import HeatmapDetector
    from circles.detectors.runtimes import OnnxRuntime

    return HeatmapDetector(OnnxRuntime(threads=threads))


def _load_heatmap_torch(threads: int) -> Detector:
    from circles.detectors.heatmap import HeatmapDetector
    from circles.detectors.torch_runtime import TorchRuntime

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
