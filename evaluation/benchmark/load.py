"""A load generator: asks a service for many pictures, in processes of its own, and tells what came of each.

Two patterns. Closed: so many clients, each asking again once it is answered; it finds what a service can do. Open:
requests begin at times fixed beforehand, whatever the service does, and a latency counts from the time at which its
request *should* have begun. So a service that stalls is charged for everybody who would have come meanwhile (no
"coordinated omission": Gil Tene, "How NOT to Measure Latency", 2013).
"""

import asyncio
import contextlib
import multiprocessing
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self

import aiohttp
import numpy as np
import uvloop

from evaluation.benchmark.exchanges import GOOD_STATUSES, Exchange, LoadResult
from evaluation.benchmark.pictures import unique_jpeg

__all__ = [
    "GOOD_STATUSES",
    "Closed",
    "Exchange",
    "Load",
    "LoadGenerator",
    "LoadResult",
    "Open",
    "RunningLoad",
    "Target",
    "arrival_times",
    "multipart",
    "run_load",
    "started_load",
]

_BOUNDARY = "----load-c7a1f3e05b9d4826"


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and how a picture stands in them."""

    url: str
    """With its path."""
    form_field: str | None = "file"
    """Multipart field of the picture; None: the picture is the body, as image/jpeg."""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closed:
    """So many clients, each of which asks again as soon as it is answered."""

    clients: int
    begin_s: float = 0.0
    """In which they begin, one after the other. They keep their connections, and where several workers share a
    listening socket, most of those that come at one instant are taken by one worker."""


@dataclass(frozen=True, slots=True)
class Open:
    """So many requests a second, whether those before are answered or not."""

    rate: float
    """At the beginning."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """Poisson: as many independent clients come; constant: one every 1 / rate seconds."""
    seed: int = 0
    most_open: int = 4096
    """Unanswered requests beyond which the next one waits; its latency still counts from when it should have begun."""
    last_rate: float | None = None
    """At the end, and in between as on a straight line; None: the same all along."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask, how, and for how long."""

    target: Target
    pictures: tuple[bytes, ...]
    """JPEG files, asked for in turn, each time in other bytes; none at all: requests without a body."""
    pattern: Closed | Open
    seconds: float
    """From the first request until the last may begin."""
    warm_up_s: float = 0.0
    """The first part of it, which no rate and no latency counts."""
    timeout_s: float = 60.0
    """In which a request is answered, or counts as failed."""
    processes: int = 1
    """Over which the clients or the rate are spread."""

    def parts(self) -> list[Self]:
        """What each process does."""
        return [replace(self, pattern=pattern, processes=1) for pattern in self._patterns()]

    def _patterns(self) -> Iterator[Closed | Open]:
        for index in range(self.processes):
            match self.pattern:
                case Closed(clients, begin_s):
                    yield Closed(clients // self.processes + (index < clients % self.processes), begin_s)
                case Open():
                    last_rate = self.pattern.last_rate
                    yield replace(
                        self.pattern,
                        rate=self.pattern.rate / self.processes,
                        last_rate=None if last_rate is None else last_rate / self.processes,
                        seed=self.pattern.seed + index,
                        most_open=max(1, self.pattern.most_open // self.processes),
                    )


class LoadGenerator:
    """Processes that carry out loads, one load after the other; a context in which they live.

    They share neither a lock nor an event loop with whoever measures, and have started before a load begins.
    """

    def __init__(self, processes: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, context) for _ in range(processes)]
        for ready in [pool.submit(_be_ready) for pool in self._pools]:
            ready.result()

    def start(self, load: Load) -> "RunningLoad":
        """Begins a load and returns, for those who have something to do meanwhile.

        Raises:
            ValueError: It is for another number of processes.
        """
        if load.processes != len(self._pools):
            raise ValueError(f"a load for {load.processes} processes, and there are {len(self._pools)}")
        parts = zip(self._pools, load.parts(), strict=True)
        return RunningLoad(load, [pool.submit(_generate, part) for pool, part in parts])

    def run(self, load: Load) -> LoadResult:
        """Carries a load out, and waits for the last answer; raises as ``start``."""
        return self.start(load).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


class RunningLoad:
    """A load that is being carried out."""

    def __init__(self, load: Load, futures: "list[Future[_Part]]") -> None:
        """
        Args:
            futures: Of each process's part.
        """
        self._load = load
        self._futures = futures

    @property
    def has_ended(self) -> bool:
        """Whether the last request is answered."""
        return all(future.done() for future in self._futures)

    def result(self) -> LoadResult:
        """What came of it, as soon as the last request is answered."""
        return _joined(self._load, [future.result() for future in self._futures])


def run_load(load: Load) -> LoadResult:
    """Carries it out in processes of its own, and waits for the last answer."""
    with started_load(load) as running:
        return running.result()


@contextlib.contextmanager
def started_load(load: Load) -> Iterator[RunningLoad]:
    """Begins it in processes of its own; leaving the context waits for its end."""
    with LoadGenerator(load.processes) as generator:
        yield generator.start(load)


def _be_ready() -> None:
    """Nothing but that this module is imported."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one process did; times of its exchanges as of ``time.monotonic()``."""

    exchanges: list[Exchange]
    began_at_s: float
    cpu_s: float


def _joined(load: Load, parts: list[_Part]) -> LoadResult:
    """All processes begin a little apart; what the first did before the last began is no full load."""
    began_at_s = max(part.began_at_s for part in parts)
    exchanges = [
        replace(
            exchange,
            intended_s=exchange.intended_s - began_at_s,
            sent_s=exchange.sent_s - began_at_s,
            ended_s=exchange.ended_s - began_at_s,
        )
        for part in parts
        for exchange in part.exchanges
    ]
    exchanges.sort(key=lambda exchange: exchange.intended_s)
    cpu_s = sum(part.cpu_s for part in parts)
    return LoadResult(tuple(exchanges), load.seconds, load.warm_up_s, cpu_s, began_at_s)


def _generate(load: Load) -> _Part:
    """One process's part."""
    return uvloop.run(_Generator(load).run())


class _Generator:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._exchanges: list[Exchange] = []
        # A number of 64 random bits to count from: no two processes or runs ask for the same bytes.
        self._next_number = secrets.randbits(64) << 32
        headers = dict(load.target.headers)
        if load.pictures and load.target.form_field is not None:
            headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
        elif load.pictures:
            headers["Content-Type"] = "image/jpeg"
        self._headers = headers

    async def run(self) -> _Part:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self._load.timeout_s)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            cpu_before, began_at_s = time.process_time(), time.monotonic()
            match self._load.pattern:
                case Closed(clients, begin_s):
                    begins = [index * begin_s / clients for index in range(clients)]
                    end = began_at_s + self._load.seconds
                    await asyncio.gather(*(self._ask_until(session, begin, end) for begin in begins))
                case Open():
                    await self._ask_at_times(session, self._load.pattern, began_at_s)
        return _Part(self._exchanges, began_at_s, time.process_time() - cpu_before)

    async def _ask_until(self, session: aiohttp.ClientSession, wait_s: float, end: float) -> None:
        await asyncio.sleep(wait_s)
        while (now := time.monotonic()) < end:
            await self._ask(session, now)

    async def _ask_at_times(self, session: aiohttp.ClientSession, pattern: Open, began_at_s: float) -> None:
        places = asyncio.Semaphore(pattern.most_open)

        async def ask(intended: float) -> None:
            async with places:
                await self._ask(session, intended)

        async with asyncio.TaskGroup() as tasks:
            for offset_s in arrival_times(pattern, self._load.seconds):
                intended = began_at_s + offset_s
                # Also when it is late: answers are to be read between one request and the next.
                await asyncio.sleep(max(0.0, intended - time.monotonic()))
                tasks.create_task(ask(intended))

    async def _ask(self, session: aiohttp.ClientSession, intended: float) -> None:
        body = self._body()
        sent = time.monotonic()
        status, failure = 0, ""
        try:
            async with session.request(self._load.target.method, self._load.target.url, data=body) as response:
                await response.read()
                status = response.status
        except TimeoutError:
            failure = "TimeoutError"
        except aiohttp.ClientError as error:
            failure = type(error).__name__
        self._exchanges.append(Exchange(intended, sent, time.monotonic(), status, failure))

    def _body(self) -> bytes | None:
        if not self._load.pictures:
            return None
        number = self._next_number
        self._next_number += 1
        picture = unique_jpeg(self._load.pictures[number % len(self._load.pictures)], number)
        name = self._load.target.form_field
        return picture if name is None else multipart(name, picture)


def arrival_times(pattern: Open, seconds: float) -> list[float]:
    """When the requests of an open loop begin: ascending, in seconds from its beginning, below its length."""
    last_rate = pattern.rate if pattern.last_rate is None else pattern.last_rate
    count = round((pattern.rate + last_rate) / 2 * seconds)
    if pattern.arrivals == "constant":
        parts = np.arange(count) / max(1, count)
    else:
        # Given their number, the arrivals of a Poisson process are independent: every seed asks for the same load.
        parts = np.sort(np.random.default_rng(pattern.seed).uniform(0.0, 1.0, count))
    # When that part of all requests has come: n = rate t + (last_rate - rate) t^2 / (2 seconds), solved for t.
    come = parts * (pattern.rate + last_rate) / 2 * seconds
    slope = (last_rate - pattern.rate) / seconds
    twice_mean_rate = pattern.rate + np.sqrt(pattern.rate**2 + 2 * slope * come)  # from the beginning until then
    return [float(time) for time in np.divide(2 * come, twice_mean_rate, out=np.zeros(count), where=come > 0)]


def multipart(name: str, image_bytes: bytes) -> bytes:
    """A form with one JPEG file in it, under ``_BOUNDARY``."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="picture.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return b"".join((head.encode(), image_bytes, f"\r\n--{_BOUNDARY}--\r\n".encode()))
