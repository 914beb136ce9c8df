"""Where detections to be judged come from: detectors in this process, in many, or a running service."""

import hashlib
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import httpx2
import stamina

from circles.detection import Detection, ImageDetections
from circles.detectors import DetectorName, default_min_score, load_detector
from circles.detectors.encoded import EncodedDetector
from circles.geometry import BBox, Circle
from circles.settings import Settings

logger = logging.getLogger(__name__)

_SERVICE_TIMEOUT_S = 60.0
_MAX_PIXELS = 2**31
_TRIES = 3
_THREADS = 1
_PART_SIZE = 64
STORE_MIN_SCORE: float = Settings.model_fields["store_min_score"].default
"""Below it nothing is answered, as a service keeps nothing below it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in one picture, best score first, in how long from encoded bytes; or what went wrong."""

    detections: tuple[Detection, ...]
    seconds: float
    failure: str | None = None


class SourceError(Exception):
    """What is to be measured cannot be."""


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
        remaining = iter(paths)
        with self._map() as mapped:
            # By parts, so that no more than one part's files are in memory.
            while part := list(islice(remaining, _PART_SIZE)):
                yield from mapped([path.read_bytes() for path in part])

    @contextmanager
    def _map(self) -> Iterator[Callable[[list[bytes]], Iterable[Answer]]]:
        """Detection over a list of files, wherever it is done."""
        start: dict[str, Any] = {"initializer": _load, "initargs": (self._detector_name,)}
        if self._ray_address is not None:
            # Here, so that whoever measures on one machine needs no Ray.
            from ray.util.multiprocessing import Pool  # noqa: PLC0415

            with Pool(ray_address=self._ray_address, **start) as pool:
                yield partial(pool.imap, _detect)
        elif self._jobs > 1:
            with ProcessPoolExecutor(self._jobs, multiprocessing.get_context("spawn"), **start) as executor:
                yield partial(executor.map, _detect)
        else:
            _load(self._detector_name)
            yield partial(map, _detect)


class ServiceSource:
    """A running service, over HTTP, with the detector it now has.

    Pictures that it knows already are detected in again; others are uploaded, and removed again afterwards.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Asks the service what it is.

        Raises:
            httpx2.HTTPError: It does not answer, or refuses.
            SourceError: It answers something else.
        """
        headers = {"X-API-Key": api_key} if api_key else {}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_SERVICE_TIMEOUT_S)
        try:
            config = self._client.get("/config").raise_for_status().json()
            detector = config["detector"] if config["mode"] == "real" else config["mode"]
            self.min_score = float(config["min_score"])
            threads = config["detector_threads"]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{url} does not answer like this service: {error!r}") from error
        self.name = f"{detector}-service"
        self.description = f"detector {detector} of the service at {url}, threads a replica: {threads}"

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        for path in paths:
            try:
                yield self._answer(path.read_bytes())
            except httpx2.HTTPStatusError as error:
                yield Answer((), 0.0, f"the service answered {error.response.status_code}: {error.response.text}")
            except httpx2.HTTPError as error:
                yield Answer((), 0.0, f"the service did not answer: {error!r}")
            except (ValueError, KeyError, TypeError) as error:
                yield Answer((), 0.0, f"the service answered something else: {error!r}")

    def _answer(self, image_bytes: bytes) -> Answer:
        path = f"/images/{hashlib.sha256(image_bytes).hexdigest()}"
        is_known = self._request("GET", path, is_absence_fine=True)[0].status_code == httpx2.codes.OK
        if is_known:
            response, seconds = self._request("POST", f"{path}/detection")
        else:
            response, seconds = self._request("POST", "/images/", files={"file": image_bytes})
            self._remove(path)
        body = response.json()
        if body["detection"] is None:
            return Answer((), seconds, f"detection is {body['status']}: {body['error']}")
        return Answer(tuple(detection_of(entry) for entry in body["detection"]["detections"]), seconds)

    def _remove(self, path: str) -> None:
        """Takes an upload back. What was measured stays measured when that fails."""
        try:
            self._request("DELETE", path, is_absence_fine=True)
        except httpx2.HTTPError as error:
            logger.warning("%s stays at the service: %r", path, error)

    def _request(
        self, method: str, path: str, *, is_absence_fine: bool = False, **content: Any
    ) -> tuple[httpx2.Response, float]:
        """The answer, tried again where that helps, and the seconds of the last try."""
        for attempt in stamina.retry_context(
            on=_is_worth_another_try, attempts=_TRIES, timeout=_SERVICE_TIMEOUT_S, wait_initial=0.2, wait_jitter=0.2
        ):
            with attempt:
                start = time.perf_counter()
                response = self._client.request(method, path, params={"min_score": 0}, **content)
                seconds = time.perf_counter() - start
                if not (is_absence_fine and response.status_code == httpx2.codes.NOT_FOUND):
                    response.raise_for_status()
        return response, seconds


@contextmanager
def opened_service(url: str, api_key: str | None = None) -> Iterator[ServiceSource]:
    """A service as a source, its connections closed afterwards."""
    source = ServiceSource(url, api_key)
    try:
        yield source
    finally:
        source.close()


# The detector of this process, loaded once by whoever starts the work here (a pool's processes start empty).
_loaded: list[EncodedDetector] = []


def _load(name: DetectorName) -> None:
    cv2.setNumThreads(_THREADS)
    _loaded[:] = [EncodedDetector(load_detector(name), _MAX_PIXELS, STORE_MIN_SCORE)]


def _detect(image_bytes: bytes) -> Answer:
    start = time.perf_counter()
    (outcome,) = _loaded[0].detect([image_bytes])
    seconds = time.perf_counter() - start
    if isinstance(outcome, ImageDetections):
        return Answer(outcome.detections, seconds)
    return Answer((), seconds, outcome.detail)


def _is_worth_another_try(error: Exception) -> bool:
    """No answer, or one that says to come back; a refusal stays one."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code == httpx2.codes.TOO_MANY_REQUESTS or error.response.is_server_error
    return isinstance(error, httpx2.HTTPError)


def detection_of(entry: dict[str, Any]) -> Detection:
    """An object of the HTTP API as a detection."""
    circle = Circle(entry["centroid"]["x"], entry["centroid"]["y"], entry["radius"])
    return Detection(circle, BBox(*entry["bbox"]), entry["score"], entry["label"])
