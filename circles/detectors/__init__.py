"""The short list of detectors; each is imported on demand, so that nobody loads what is not used."""

from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

from circles.detectors.protocol import Detector

DetectorName = Literal["hough", "dummy"]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a detector is, and the score from which its answers are shown unless somebody says otherwise."""

    module: str
    class_name: str
    default_min_score: float


_DETECTORS: dict[DetectorName, _Entry] = {
    "hough": _Entry("circles.detectors.hough", "HoughDetector", 0.3),
    "dummy": _Entry("circles.detectors.dummy", "DummyDetector", 0.5),
}


def load_detector(name: DetectorName) -> Detector:
    """The detector of this name, ready to detect.

    Raises:
        KeyError: There is none of this name.
    """
    entry = _DETECTORS[name]
    return cast(Detector, getattr(import_module(entry.module), entry.class_name)())


def default_min_score(name: DetectorName) -> float:
    """The score from which this detector's answers are shown by default; loads nothing."""
    return _DETECTORS[name].default_min_score
