"""Where detections to be judged come from: detectors in this process, in many, or a running service."""

import hashlib
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import httpx2
import stamina

from circles.detection import Detection
from circles.detectors import DetectorName, default_min_score, load_detector
from circles.detectors.protocol import Detector
from circles.errors import ImageError
from circles.geometry import BBox, Circle
from circles.imaging import decode_image
from circles.settings import Settings

_SERVICE_TIMEOUT_S = 60.0
_MAX_PIXELS = 2**31
_RETRIES = 5
_THREADS = 1
_FLOOR: float = Settings.model_fields["store_min_score"].default


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in one picture, best score first, in how long from encoded bytes; or what went wrong."""

    detections: tuple[Detection, ...]
    seconds: float
    failure: str | None = None


class Source(Protocol):
    """Answers for picture files, one after the other, in order.

    Everything scoring at least the floor below which a service keeps nothing is answered; ``min_score`` is where what
    is measured cuts its answers by default.
    """

    @property
    def name(self) -> str:
        """What is measured, in a word."""

    @property
    def description(self) -> str:
        """What is measured, and on what, in a line."""

    @property
    def min_score(self) -> float:
        """The default cut."""

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """An answer for every file; a failure is an answer too, so that nothing is silently scored as zero."""


class InProcessSource:
    """A detector in this process, or in several."""

    def __init__(self, name: DetectorName, jobs: int = 1, ray_address: str | None = None) -> None:
        """
        Args:
            jobs: Processes to spread the work over.
            ray_address: Spread it over the machines of this Ray cluster instead.
        """
        self.name: str = name
        self._detector_name: DetectorName = name
        self._jobs = jobs
        self._ray_address = ray_address
        where = (
            f"Ray at {ray_address}" if ray_address else f"{jobs} process{'es' if jobs > 1 else ''} of {_THREADS} thread"
        )
        self.description = f"detector {name} in {where}"
        self.min_score = default_min_score(name)

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        files = (path.read_bytes() for path in paths)
        if self._ray_address is not None:
            # Here, so that whoever measures on one machine needs no Ray.
            from ray.util.multiprocessing import Pool  # noqa: PLC0415

            with Pool(ray_address=self._ray_address, initializer=_load, initargs=(self._detector_name,)) as pool:
                yield from pool.imap(_detect, files)
        elif self._jobs > 1:
            context = multiprocessing.get_context("spawn")
            with context.Pool(self._jobs, initializer=_load, initargs=(self._detector_name,)) as pool:
                yield from pool.imap(_detect, files)
        else:
            _load(self._detector_name)
            yield from map(_detect, files)


class ServiceSource:
    """A running service, over HTTP. Pictures that were not there before are removed again."""

    name = "service"

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Asks the service what it is.

        Raises:
            httpx2.HTTPError: It does not answer, or refuses.
        """
        headers = {"X-API-Key": api_key} if api_key else {}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_SERVICE_TIMEOUT_S)
        config = self._client.get("/config").raise_for_status().json()
        self.description = f"service at {url} ({config['mode']} mode)"
        self.min_score = float(config["min_score"])

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        for path in paths:
            image_bytes = path.read_bytes()
            try:
                yield self._answer(image_bytes)
            except httpx2.HTTPStatusError as error:
                yield Answer((), 0.0, f"the service answered {error.response.status_code}: {error.response.text}")
            except httpx2.HTTPError as error:
                yield Answer((), 0.0, f"the service did not answer: {error!r}")

    def _answer(self, image_bytes: bytes) -> Answer:
        seconds, body = 0.0, {}
        for attempt in stamina.retry_context(on=_is_worth_another_try, attempts=_RETRIES, timeout=_SERVICE_TIMEOUT_S):
            with attempt:
                start = time.perf_counter()
                response = self._client.post("/images/", files={"file": image_bytes}, params={"min_score": 0})
                response.raise_for_status()
                seconds = time.perf_counter() - start
                body = response.json()
                if response.status_code != httpx2.codes.OK:  # this upload made the image
                    self._client.delete(f"/images/{hashlib.sha256(image_bytes).hexdigest()}").raise_for_status()
        if body["detection"] is None:
            return Answer((), seconds, f"detection is {body['status']}: {body['error']}")
        return Answer(tuple(detection_of(entry) for entry in body["detection"]["detections"]), seconds)


@contextmanager
def opened_service(url: str, api_key: str | None = None) -> Iterator[ServiceSource]:
    """A service as a source, its connections closed afterwards."""
    source = ServiceSource(url, api_key)
    try:
        yield source
    finally:
        source.close()


# The detector of this process, loaded once by whoever starts the work here (a pool's processes start empty).
_loaded: list[Detector] = []


def _load(name: DetectorName) -> None:
    cv2.setNumThreads(_THREADS)
    _loaded[:] = [load_detector(name)]


def _detect(image_bytes: bytes) -> Answer:
    start = time.perf_counter()
    try:
        image = decode_image(image_bytes, _MAX_PIXELS)
    except ImageError as error:
        return Answer((), 0.0, error.detail)
    (detections,) = _loaded[0].detect([image])
    seconds = time.perf_counter() - start
    return Answer(tuple(d for d in detections if d.score >= _FLOOR), seconds)


def _is_worth_another_try(error: Exception) -> bool:
    """No answer, or one that says to come back; a refusal stays one."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in (429, 503)
    return isinstance(error, httpx2.HTTPError)


def detection_of(entry: dict[str, Any]) -> Detection:
    """An object of the HTTP API as a detection."""
    circle = Circle(entry["centroid"]["x"], entry["centroid"]["y"], entry["radius"])
    return Detection(circle, BBox(*entry["bbox"]), entry["score"], entry["label"])
