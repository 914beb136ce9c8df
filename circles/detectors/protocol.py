"""What every detector promises."""

from collections.abc import Sequence
from typing import Protocol

from circles.detection import Detection, DetectorInfo
from circles.imaging import RGBImage


class Detector(Protocol):
    """Finds circular objects in pictures. A batch goes in, a batch comes out; one instance, one thread at a time."""

    @property
    def info(self) -> DetectorInfo:
        """Name and version, kept with every result."""

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        """For every image, in order, its detections, best score first, scores in [0, 1].

        Images may differ in size; one px on either side is enough. Their arrays may be read-only.
        """
