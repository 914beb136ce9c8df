"""Uploads: clients that keep uploading while the service is taken apart, and what they were told.

Some try again for 30 s, as a client that cares does; one does not, and so sees how often the service fails.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import stamina

from circles.storage.records import image_id_of
from tests.pictures import disc_jpeg

PATIENT_CLIENTS = 4
"""Each with an upload in flight at all times."""

_PACE_S = 0.25
"""Between the uploads of the one that does not: by the clock, so that failing fast does not count for more."""

_ANSWER_S = 25.0  # longer than the service lets an upload wait for the detector
_ASYNC_PERIOD = 3  # every third upload is told to be detected later, so that there is always something pending


@dataclass
class Told:
    """What clients were told. Written by all of them; read when they have ended, or for its counts."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    """Id of each image that was answered 200, 201 or 202; what its upload's first attempt was named."""
    sent: set[str] = field(default_factory=set)
    """Ids of all that was ever sent, whatever was answered."""
    failures: list[str] = field(default_factory=list)
    """Uploads of patient clients that failed for good, and why."""
    impatient: Counter[str] = field(default_factory=Counter)
    """What the client without patience was answered: a status, or the name of an error."""
    tries: Counter[str] = field(default_factory=Counter)
    """Likewise, of patient clients' attempts that did not succeed."""
    wrong: list[str] = field(default_factory=list)
    """Answers that contradict what was sent."""

    @property
    def availability(self) -> float:
        """The part of the impatient client's uploads that was acknowledged; 1 before the first one."""
        total = self.impatient.total()
        return sum(self.impatient[status] for status in ("200", "201", "202")) / total if total else 1.0


class NotAcknowledgedError(Exception):
    """An answer that is worth another try; the message says which."""


class Uploads:
    """Clients at work, from ``running`` until it is left."""

    def __init__(self, url: str, first_seed: int, sums: Told, patience_s: float) -> None:
        """
        Args:
            url: Of the service, also after it was started again.
            first_seed: Of the first picture; the others follow.
            sums: What clients of earlier faults were told, to which this adds what was sent and acknowledged.
            patience_s: For which the patient ones try again.
        """
        self.told = Told()
        self._sums = sums
        self._url = url
        self._patience_s = patience_s
        self._seeds = itertools.count(first_seed)
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._newest_start = -1.0

    @property
    def newest_start(self) -> float:
        """When (monotonic) the newest of the acknowledged uploads' last attempts began."""
        return self._newest_start

    @contextmanager
    def running(self) -> Iterator[None]:
        """Clients upload until left; then each ends what it has begun."""
        self._is_over.clear()
        with ThreadPoolExecutor(PATIENT_CLIENTS + 1) as pool:
            clients: list[Future[None]] = [pool.submit(self._upload_patiently) for _ in range(PATIENT_CLIENTS)]
            clients.append(pool.submit(self._upload_impatiently))
            try:
                yield
            finally:
                self._is_over.set()
        for client in clients:
            client.result()  # raises what broke in a client itself

    def _upload_patiently(self) -> None:
        while not self._is_over.is_set():
            seed, image_bytes = self._next_picture()
            try:
                for attempt in stamina.retry_context(
                    on=(NotAcknowledgedError, httpx2.HTTPError),
                    attempts=None,
                    timeout=self._patience_s,
                    wait_initial=0.1,
                    wait_max=2.0,
                    wait_jitter=0.5,
                ):
                    with attempt:
                        self._try(seed, image_bytes, self.told.tries)
            except (NotAcknowledgedError, httpx2.HTTPError) as error:
                with self._lock:
                    self.told.failures.append(f"{image_id_of(image_bytes)}: {_name(error)}")

    def _upload_impatiently(self) -> None:
        while not self._is_over.is_set():
            seed, image_bytes = self._next_picture()
            start = time.monotonic()
            try:
                status = self._try(seed, image_bytes, Counter())
            except (NotAcknowledgedError, httpx2.HTTPError) as error:
                status = _name(error)
            with self._lock:
                self.told.impatient[status] += 1
            self._is_over.wait(max(0.0, start + _PACE_S - time.monotonic()))

    def _next_picture(self) -> tuple[int, bytes]:
        with self._lock:
            seed = next(self._seeds)
        image_bytes = disc_jpeg(seed)
        with self._lock:
            for told in (self.told, self._sums):
                told.sent.add(image_id_of(image_bytes))
        return seed, image_bytes

    def _try(self, seed: int, image_bytes: bytes, failed: Counter[str]) -> str:
        """One request; the status when it was acknowledged."""
        start = time.monotonic()
        headers = {"Prefer": "respond-async"} if seed % _ASYNC_PERIOD == 0 else {}
        try:
            # A connection of its own: one that was kept open would only add the client's own doubts.
            with httpx2.Client(base_url=self._url, timeout=_ANSWER_S, trust_env=False) as client:
                response = client.post("/images/", files={"file": (f"{seed}.jpg", image_bytes)}, headers=headers)
            if response.status_code not in (200, 201, 202):
                raise NotAcknowledgedError(f"{response.status_code} {_title(response)}")
        except (NotAcknowledgedError, httpx2.HTTPError) as error:
            with self._lock:
                failed[_name(error)] += 1
            raise
        image_id = str(response.json()["image_id"])
        with self._lock:
            for told in (self.told, self._sums):
                told.acknowledged[image_id] = f"{seed}.jpg"
            self._newest_start = max(self._newest_start, start)
            if image_id != image_id_of(image_bytes):
                self._sums.wrong.append(f"{seed}.jpg was acknowledged as {image_id}")
        return str(response.status_code)


def _name(error: Exception) -> str:
    return str(error) if isinstance(error, NotAcknowledgedError) else type(error).__name__


def _title(response: httpx2.Response) -> str:
    """Of a problem document; else the beginning of what was answered."""
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return str(response.json()["title"])
    return response.text.strip()[:40]
