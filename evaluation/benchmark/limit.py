"""The limit: decoding and detecting in bare processes, one a core, with nothing between pictures and detector.

No service can do more on the same machine with the same detector; what one does less is what serving costs.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from statistics import median

import psutil

from circles.detectors.encoded import EncodedDetector
from circles.detectors.guarded import ALLOCATOR_VARIABLES
from evaluation.benchmark.programs.bare import bare_detector

_WARM_UP_PICTURES = 8
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Limit:
    """What bare processes did."""

    pictures_per_s: float
    """All together."""
    cpu_ms: float
    """Processor time a picture, in ms."""
    resident_bytes: int
    """Of all together; pages that several share count once."""
    call_ms: float
    """One call of the detector, in ms (median); with batches of one, the latency of a picture."""


def measure_limit(pictures: Sequence[bytes], seconds: float, processes: int, batch_size: int) -> Limit:
    """Detects for so many seconds, in so many processes at once.

    Args:
        batch_size: Pictures given to the detector in one call.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with _allocator_variables(), ProcessPoolExecutor(processes, context, _remember_barrier, (barrier,)) as pool:
        futures = [pool.submit(_detect_for, tuple(pictures), seconds, batch_size) for _ in range(processes)]
        parts = [future.result() for future in futures]
    count = sum(part.pictures for part in parts)
    return Limit(
        pictures_per_s=sum(part.pictures / part.seconds for part in parts),
        cpu_ms=1000 * sum(part.cpu_s for part in parts) / count,
        resident_bytes=sum(part.resident_bytes for part in parts),
        call_ms=median(1000 * each for part in parts for each in part.calls_s),
    )


@contextmanager
def _allocator_variables() -> Iterator[None]:
    """For processes that are started meanwhile, as the service gives them to its detectors: glibc reads them once."""
    added = {name: value for name, value in ALLOCATOR_VARIABLES.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@dataclass(frozen=True, slots=True)
class _Part:
    pictures: int
    seconds: float
    cpu_s: float
    resident_bytes: int
    calls_s: tuple[float, ...]


_barrier: Barrier | None = None


def _remember_barrier(barrier: Barrier) -> None:
    """A barrier can be given to a process at its start only."""
    global _barrier  # noqa: PLW0603
    _barrier = barrier


def _detect_for(pictures: tuple[bytes, ...], seconds: float, batch_size: int) -> _Part:
    detector = bare_detector()
    detector.detect(list(itertools.islice(itertools.cycle(pictures), _WARM_UP_PICTURES)))
    batches = _batches(pictures, batch_size)
    assert _barrier is not None
    _barrier.wait(_START_TIMEOUT_S)
    cpu_before, begin = time.process_time(), time.perf_counter()
    calls_s: list[float] = []
    while (now := time.perf_counter()) < begin + seconds:
        _detect(detector, next(batches))
        calls_s.append(time.perf_counter() - now)
    return _Part(
        pictures=len(calls_s) * batch_size,
        seconds=time.perf_counter() - begin,
        cpu_s=time.process_time() - cpu_before,
        resident_bytes=psutil.Process().memory_full_info().pss,
        calls_s=tuple(calls_s),
    )


def _batches(pictures: tuple[bytes, ...], batch_size: int) -> "itertools.cycle[list[bytes]]":
    """Batches that have every picture as often as every other one."""
    endless = itertools.cycle(pictures)
    return itertools.cycle([list(itertools.islice(endless, batch_size)) for _ in pictures])


def _detect(detector: EncodedDetector, files: list[bytes]) -> None:
    for outcome in detector.detect(files):
        if isinstance(outcome, Exception):
            raise outcome
