"""Where the time of a picture goes in this application, by what its own answers tell (``Server-Timing``, W3C)."""

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import cv2
import httpx2

from circles.detectors.heatmap import HeatmapDetector
from circles.detectors.rim import Strips
from circles.detectors.runtimes import Array, OnnxRuntime
from circles.imaging import RGBImage, decode_image
from evaluation.benchmark.pictures import unique_jpeg

STAGES = (
    "receive",
    "check",
    "hop",
    "queue",
    "batch",
    "pipe",
    "decode",
    "detect",
    "file",
    "transaction",
    "response",
)
"""What a client waits for one after the other, in this order; `file` is what is left of it after detection."""

_ENTRY = re.compile(r"([\w-]+);dur=([\d.]+)")
_TIMEOUT_S = 60.0
_MAX_PIXELS = 2**30


class NoTimingsError(Exception):
    """The service does not tell them."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Means over pictures, in ms."""

    stages_ms: dict[str, float]
    """Of each stage, those beside the client's way included."""
    service_ms: float
    """What the service says that the whole took."""
    client_ms: float
    """What the client waited: the service, the proxy before it, and the way there and back."""

    @property
    def told_part(self) -> float:
        """Of what the service took, the part that its stages explain."""
        return sum(self.stages_ms.get(name, 0.0) for name in STAGES) / self.service_ms


def measure_stages(url: str, pictures: Sequence[bytes], count: int) -> Stages:
    """Asks for pictures one after the other.

    Args:
        url: Where they are taken.
        count: How many, after one round of all of them that is not counted.

    Raises:
        NoTimingsError: The answers have no ``Server-Timing``.
    """
    told: list[dict[str, float]] = []
    client_ms: list[float] = []
    start = time.time_ns() << 32
    with httpx2.Client(timeout=_TIMEOUT_S) as client:
        for number, picture in enumerate(itertools.islice(itertools.cycle(pictures), len(pictures) + count)):
            files = {"file": ("picture.jpg", unique_jpeg(picture, start + number), "image/jpeg")}
            began = time.perf_counter()
            answer = client.post(url, files=files)
            waited_ms = 1000 * (time.perf_counter() - began)
            answer.raise_for_status()
            if number >= len(pictures):
                told.append(timings_in(answer.headers))
                client_ms.append(waited_ms)
    names = dict.fromkeys(name for each in told for name in each)
    means = {name: mean(each.get(name, 0.0) for each in told) for name in names}
    return Stages(means, means.pop("total"), mean(client_ms))


def timings_in(headers: Mapping[str, str]) -> dict[str, float]:
    """The durations that an answer's headers tell, in ms.

    Raises:
        NoTimingsError: There is no total among them.
    """
    found = {name: float(duration) for name, duration in _ENTRY.findall(headers.get("Server-Timing", ""))}
    if "total" not in found:
        raise NoTimingsError("the service tells no timings: it runs without SERVER_TIMING=1")
    return found


def network_part(pictures: Sequence[bytes], repeats: int = 5) -> float:
    """Of the time that the learned detector takes for these pictures, the part within its networks; 0 to 1.

    The rest is preparing views and strips, and reading peaks and rims.
    """
    cv2.setNumThreads(1)
    runtime = _TimedRuntime()
    detector = HeatmapDetector(runtime)
    images = [decode_image(picture, _MAX_PIXELS) for picture in pictures]
    detector.detect(images)
    runtime.seconds = 0.0
    began = time.perf_counter()
    for _ in range(repeats):
        detector.detect(images)
    return runtime.seconds / (time.perf_counter() - began)


class _TimedRuntime(OnnxRuntime):
    """Counts the seconds within the networks."""

    seconds = 0.0

    def cells(self, image: RGBImage) -> Array:
        began = time.perf_counter()
        result = super().cells(image)
        self.seconds += time.perf_counter() - began
        return result

    def rims(self, strips: Strips, look: int) -> tuple[Array, Array]:
        began = time.perf_counter()
        result = super().rims(strips, look)
        self.seconds += time.perf_counter() - began
        return result
