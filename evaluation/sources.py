"""Where detections to be judged come from: a detector in this process, or a running service."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import httpx2

from circles.detectors import DetectorName, default_min_score, load_detector
from circles.geometry import BBox
from circles.imaging import decode_image

_SERVICE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ScoredBBox:
    """One detection, as far as judging boxes needs it."""

    bbox: BBox
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in one picture, best score first, and how long that took from encoded bytes."""

    detections: tuple[ScoredBBox, ...]
    seconds: float


class SourceError(Exception):
    """The source refused a picture or is away; the message says which and why."""


class DetectionSource(Protocol):
    """Answers for one picture after the other."""

    @property
    def description(self) -> str:
        """What is measured, for the report."""

    def detect(self, path: Path) -> Answer:
        """What is in the picture of this file.

        Raises:
            SourceError: No answer is to be had.
        """


class InProcessSource:
    """A detector in this process, its answers cut at the score it is used with by default, or at another one."""

    def __init__(self, name: DetectorName, min_score: float | None) -> None:
        self._detector = load_detector(name)
        self._min_score = default_min_score(name) if min_score is None else min_score
        self.description = f"{name} in-process, min_score {self._min_score:g}"

    def detect(self, path: Path) -> Answer:
        image_bytes = path.read_bytes()
        start = time.perf_counter()
        image = decode_image(image_bytes, max_pixels=2**31)
        (detections,) = self._detector.detect([image])
        seconds = time.perf_counter() - start
        kept = tuple(ScoredBBox(d.bbox, d.score) for d in detections if d.score >= self._min_score)
        return Answer(kept, seconds)


class ServiceSource:
    """A running service, over HTTP. Pictures that were not there before are removed again."""

    def __init__(self, url: str, min_score: float | None, api_key: str | None) -> None:
        headers = {"X-API-Key": api_key} if api_key else {}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_SERVICE_TIMEOUT_S)
        self._parameters = {} if min_score is None else {"min_score": min_score}
        self.description = f"service at {url}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def detect(self, path: Path) -> Answer:
        try:
            start = time.perf_counter()
            response = self._client.post("/images/", files={"file": path.read_bytes()}, params=self._parameters)
            seconds = time.perf_counter() - start
            if response.status_code not in (200, 201):
                raise SourceError(f"{path.name}: the service answered {response.status_code}: {response.text}")
            body = response.json()
            if response.status_code == httpx2.codes.CREATED:
                self._client.delete(f"/images/{body['image_id']}").raise_for_status()
        except httpx2.HTTPError as error:
            raise SourceError(f"{path.name}: {error}") from error
        if body["detection"] is None:
            raise SourceError(f"{path.name}: detection is {body['status']}: {body['error']}")
        found = body["detection"]["detections"]
        return Answer(tuple(ScoredBBox(BBox(*entry["bbox"]), entry["score"]) for entry in found), seconds)
