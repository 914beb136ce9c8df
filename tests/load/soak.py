"""A steady load for a long time: what leaks shows."""

import itertools
import statistics
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from evaluation.benchmark.load import Load, LoadResult, Open, Target, started_load
from tests.load.watched import Sample, Watched
from tests.serving import RunningServe

T = TypeVar("T")

_KEPT_IMAGES = 200  # older ones are deleted, so that the store is as large at the end as at the beginning
_PERIOD_S = 1.0


@dataclass(frozen=True)
class Growth:
    """A role's processes in the second and the last quarter of the time; the first is theirs to warm up."""

    earlier: Sample
    later: Sample

    @property
    def memory(self) -> float:
        """Part by which resident memory grew; negative where it shrank."""
        return self.later.resident_bytes / self.earlier.resident_bytes - 1


@dataclass(frozen=True)
class Soaked:
    """What came of it."""

    result: LoadResult
    readers_statuses: Counter[str]
    """Requests beside the uploads: method and status."""
    growth: dict[str, Growth]
    """By role."""
    latency_s: tuple[tuple[float, float], tuple[float, float]]
    """Median and 99th percentile, in the second and in the last quarter."""


def soak(service: RunningServe, pictures: Sequence[bytes], rate: float, seconds: float) -> Soaked:
    """Uploads at a rate, while others list, look at, and delete what was uploaded."""
    load = Load(Target(f"{service.url}/images/"), tuple(pictures), Open(rate), seconds, warm_up_s=seconds / 4)
    has_ended = threading.Event()
    with Watched(service) as watched, started_load(load) as running, ThreadPoolExecutor(1) as beside:
        reading = beside.submit(_read_and_delete, service, has_ended)
        try:
            result = running.result()
        finally:
            has_ended.set()
        statuses = reading.result()
    quarters = (0.25, 0.5), (0.75, 1.0)
    growth = {
        role: Growth(*(_typical(_part(samples, *quarter)) for quarter in quarters))
        for role, samples in watched.samples.items()
    }
    earlier, later = (_part(result.exchanges, *quarter) for quarter in quarters)
    latencies = tuple(sorted(each.latency_s for each in exchanges) for exchanges in (earlier, later))
    median_and_tail = [(statistics.median(each), each[int(0.99 * len(each))]) for each in latencies]
    return Soaked(result, statuses, growth, (median_and_tail[0], median_and_tail[1]))


def _read_and_delete(service: RunningServe, has_ended: threading.Event) -> Counter[str]:
    statuses: Counter[str] = Counter()
    kept: deque[str] = deque()
    with service.client() as client:

        def ask(method: str, path: str) -> httpx2.Response:
            answer = client.request(method, path)
            statuses[f"{method} {answer.status_code}"] += 1
            return answer

        for turn in itertools.count():
            if has_ended.wait(_PERIOD_S):
                return statuses
            known = set(kept)
            page = ask("GET", "/images/?limit=200&status=done").json()["items"]
            kept.extend(image["image_id"] for image in reversed(page) if image["image_id"] not in known)
            while len(kept) > _KEPT_IMAGES:
                ask("DELETE", f"/images/{kept.popleft()}")
            if kept:
                for view in ("", "/objects", "/content", "/annotated"):
                    ask("GET", f"/images/{kept[turn % len(kept)]}{view}")
    raise AssertionError("unreachable")


def _part(items: Sequence[T], begin: float, end: float) -> Sequence[T]:
    return items[int(begin * len(items)) : int(end * len(items))]


def _typical(samples: Sequence[Sample]) -> Sample:
    return Sample(
        int(statistics.median(sample.resident_bytes for sample in samples)),
        int(statistics.median(sample.open_files for sample in samples)),
    )
