"""Steady uploads: so many a second by the clock, while the service has room for them, and none of them tried twice."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Event

import httpx2

from tests.pictures import disc_jpeg

_ANSWER_S = 60.0


@dataclass
class Steady:
    """What became of the uploads; complete once they have ended."""

    answers: list[tuple[str, float]] = field(default_factory=list)
    """Status or name of the error, and the seconds until then."""
    acknowledged: list[bytes] = field(default_factory=list)
    """Pictures that the service said it keeps."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Of answers that are none of 200, 201, 202: status, title and Retry-After."""

    @property
    def failures(self) -> int:
        """How many were not acknowledged."""
        return self.refusals.total()

    @property
    def slowest_s(self) -> float:
        """The longest time that one waited for its answer."""
        return max(seconds for _, seconds in self.answers)


@contextmanager
def steady_uploads(url: str, first_seed: int, per_s: float = 10.0, most_in_flight: int = 48) -> Iterator[Steady]:
    """Uploads at this rate, or as fast as they are answered where that is slower, until left; then waits for each.

    Args:
        most_in_flight: Below ``MAX_IN_FLIGHT``: a machine too slow for the rate slows the uploads, and has no cause to
            refuse one.
    """
    steady = Steady()
    is_over = Event()
    with ThreadPoolExecutor(most_in_flight + 1) as pool:
        pacing = pool.submit(_pace, pool, steady, is_over, url, first_seed, per_s, most_in_flight)
        try:
            yield steady
        finally:
            is_over.set()
            for upload in pacing.result():
                upload.result()


def _pace(
    pool: ThreadPoolExecutor,
    steady: Steady,
    is_over: Event,
    url: str,
    first_seed: int,
    per_s: float,
    most_in_flight: int,
) -> list[Future[None]]:
    uploads: list[Future[None]] = []
    room = BoundedSemaphore(most_in_flight)
    start = time.monotonic()
    while not is_over.wait(max(0.0, start + len(uploads) / per_s - time.monotonic())):
        room.acquire()
        upload = pool.submit(_upload, steady, url, disc_jpeg(first_seed + len(uploads)))
        upload.add_done_callback(lambda _: room.release())
        uploads.append(upload)
    return uploads


def _upload(steady: Steady, url: str, image_bytes: bytes) -> None:
    start = time.monotonic()
    refusal = None
    try:
        with httpx2.Client(base_url=url, timeout=_ANSWER_S, trust_env=False) as client:
            response = client.post("/images/", files={"file": image_bytes})
        outcome = str(response.status_code)
        if response.status_code in (200, 201, 202):
            steady.acknowledged.append(image_bytes)
        else:
            refusal = f"{outcome} {response.text[:120]} Retry-After: {response.headers.get('Retry-After')}"
    except httpx2.HTTPError as error:
        outcome = refusal = type(error).__name__
    steady.answers.append((outcome, time.monotonic() - start))
    if refusal is not None:
        steady.refusals[refusal] += 1
