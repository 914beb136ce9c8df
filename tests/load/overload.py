"""More load than a service can take: what it still does, how it refuses, and how soon it is itself again."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from evaluation.benchmark.load import Closed, Load, LoadResult, Open, Target, run_load, started_load
from evaluation.benchmark.pictures import unique_jpeg
from tests.load.watched import Watched
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.serving import RunningServe

FACTORS = (1, 2, 5, 10)
REFUSALS = frozenset({429, 503})
ANSWERS = frozenset({200, 201, 202}) | REFUSALS

_CLIENTS = 16  # enough to keep a service of one detector replica busy
_RECOVERY_S = 60.0
_LOOK_PERIOD_S = 0.5
_PICTURE = disc_jpeg(1)


@dataclass(frozen=True)
class Step:
    """What came of one load."""

    factor: float
    """Of capacity."""
    offered: float
    """Requests a second."""
    goodput: float
    """Pictures detected in, a second."""
    statuses: Counter[int]
    accepted_s: tuple[float, float]
    """Median and 99th percentile of the latency of those that were accepted."""
    refused_s: tuple[float, float]
    """Likewise of those that were refused; NaN without any."""
    recovery_s: float
    """From the end of the load until an upload is answered as before it."""
    bare_refusals: int
    """Refusals without a Retry-After, of those that were looked at."""


@dataclass
class Overload:
    """What came of all of them."""

    capacity: float
    """Pictures a second, the most that was seen."""
    unloaded_s: float
    """What one upload takes when nobody else is there."""
    steps: list[Step] = field(default_factory=list)


def overload(
    service: RunningServe,
    pictures: Sequence[bytes],
    seconds: float,
    factors: Sequence[float] = FACTORS,
    recovered_within: float = 3.0,
) -> Overload:
    """Finds out what the service can do, then offers it multiples of that.

    Args:
        seconds: For each load.
        recovered_within: What an upload takes at most when the service is itself again, of what one takes unloaded.
    """
    target = Target(f"{service.url}/images/")
    unloaded = run_load(Load(target, tuple(pictures), Closed(1), seconds))
    full = run_load(Load(target, tuple(pictures), Closed(_CLIENTS), seconds, warm_up_s=seconds / 4))
    found = Overload(full.goodput, unloaded.quantile_s(0.5))
    for factor in factors:
        rate = factor * full.goodput
        load = Load(target, tuple(pictures), Open(rate), seconds, warm_up_s=seconds / 4)
        with started_load(load) as running, ThreadPoolExecutor(1) as waiting:
            coming = waiting.submit(running.result)
            bare_refusals = _bare_refusals(service, coming.done)
            result = coming.result()
        recovery_s = _recovery_s(service, recovered_within * found.unloaded_s)
        found.steps.append(_step(factor, result, recovery_s, bare_refusals))
    return found


def burst(service: RunningServe, picture: bytes, uploads: int) -> tuple[LoadResult, Watched]:
    """So many uploads of one large picture (each in other bytes) at the same time."""
    with Watched(service) as watched:
        load = Load(
            Target(f"{service.url}/images/"),
            (picture,),
            Open(uploads * 10, "constant", most_open=uploads),
            0.1,
            timeout_s=300,
        )
        result = run_load(load)
    return result, watched


def _step(factor: float, result: LoadResult, recovery_s: float, bare_refusals: int) -> Step:
    accepted = sorted(each.latency_s for each in result.measured if each.status in ANSWERS - REFUSALS)
    refused = sorted(each.ended_s - each.sent_s for each in result.measured if each.status in REFUSALS)
    return Step(
        factor,
        len(result.exchanges) / result.seconds,
        result.goodput,
        result.statuses,
        (_quantile(accepted, 0.5), _quantile(accepted, 0.99)),
        (_quantile(refused, 0.5), _quantile(refused, 0.99)),
        recovery_s,
        bare_refusals,
    )


def _quantile(ascending: Sequence[float], part: float) -> float:
    return ascending[min(len(ascending) - 1, int(part * len(ascending)))] if ascending else float("nan")


def _bare_refusals(service: RunningServe, has_ended: Callable[[], bool]) -> int:
    """Uploads beside the load, one by one while it lasts; how many were refused without a time to come back."""
    count = 0
    with service.client() as client:
        while not has_ended():
            answer = client.post("/images/", files={"file": _fresh_picture()})
            count += answer.status_code in REFUSALS and not answer.headers.get("Retry-After", "").isdecimal()
            time.sleep(_LOOK_PERIOD_S)  # or looking would be most of the load
    return count


def _fresh_picture() -> bytes:
    """That was never uploaded; making it costs next to nothing."""
    return unique_jpeg(_PICTURE, time.monotonic_ns())


def _recovery_s(service: RunningServe, limit_s: float) -> float:
    """Until an upload is answered within the limit."""
    with service.client() as client:  # opening one takes as long as an upload
        began = time.monotonic()

        def is_itself_again() -> bool:
            picture = _fresh_picture()
            sent = time.monotonic()
            answer = client.post("/images/", files={"file": picture})
            return answer.status_code == 201 and time.monotonic() - sent <= limit_s

        wait_until(is_itself_again, _RECOVERY_S)
        return time.monotonic() - began
