"""One contestant in one round: started, warmed up, measured at full load and below it, ended."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from evaluation.benchmark.contestants import Contestant
from evaluation.benchmark.load import Closed, Load, LoadGenerator, LoadResult, Open, Target
from evaluation.benchmark.pictures import unique_jpeg
from evaluation.benchmark.usage import Meter

PARTS_OF_SATURATION = (0.5, 0.8)
"""At which latencies are measured, beside one client alone."""

_LEAST_PICTURES = 10  # in a measurement, so that slow ones get more time, up to
_LONGEST_S = 60.0
_BEGIN_PART = 0.05  # of a closed loop's time, in which its clients begin
_RAMP_PART = 0.1  # of it, after which the queues are filled
_TIMEOUT_S = 300.0
_IDLE_S = 3.0


class WrongAnswersError(Exception):
    """A contestant failed, or does not find what the bare detector finds; the message says where."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a contestant is measured; the same for all."""

    pictures: tuple[bytes, ...]
    counts: tuple[int, ...]
    """Objects that the bare detector finds in each of them."""
    clients: int
    """At saturation."""
    seconds: float
    """Of each measurement, at least."""
    warm_up_s: float
    seed: int
    """Of the arrivals of open loops."""
    has_latencies: bool = True
    """Whether latencies below saturation are measured."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one contestant did in one round. Bytes and processor time are those of one picture, at saturation."""

    contestant: str
    round: int
    pictures_per_s: float
    p50_saturated_ms: float
    cpu_ms: float
    """Of the contestant's processes."""
    cpu_ms_by_program: dict[str, float]
    """The same, by ``usage.program_of``."""
    busiest_part: float
    """The part of it that one process had, the busiest: of workers that share the work, about one by their number; near
    1 where all but one of them were idle, or where there is but one."""
    generator_cpu_ms: float
    """Of the load generator, which is not part of it."""
    io_bytes: float
    """As ``Usage.io_bytes``."""
    loopback_bytes: float
    """As ``Usage.loopback_bytes``; the client's request and its answer are part of it."""
    resident_bytes: int
    p50_one_client_ms: float
    idle_cores: float
    """Processor time a second when nobody asks for anything."""
    idle_cores_by_program: dict[str, float]
    """The same, by ``usage.program_of``."""
    at_part: dict[str, dict[str, float]]
    """By part of saturation ("0.5"): `rate`, `p50_ms`, `p99_ms` and `sent_late_ms`, the generator's own delay."""


def measure(contestant: Contestant, plan: Plan, number: int, folder: Path, told: Callable[[str], None]) -> Measurement:
    """Starts it, measures it, ends it.

    Args:
        number: Of the round.
        folder: For its data and its logs; fresh.
        told: Hears what is going on.

    Raises:
        LocalServiceError: It cannot be started.
        WrongAnswersError: It answers something else than pictures' objects.
    """
    target = contestant.start(folder)
    try:
        with LoadGenerator() as generator:
            load = _Loads(plan, target, generator)
            told("warming up")
            began_s = time.monotonic()
            _check(contestant, target, plan)
            if time.monotonic() - began_s < plan.warm_up_s:
                load.run(Closed(plan.clients, _BEGIN_PART * plan.warm_up_s), plan.warm_up_s)
            idle = Meter(contestant.processes)
            time.sleep(_IDLE_S)
            idle_usage = idle.read()
            told("one client")
            picture_s = load.run(Closed(1), plan.seconds).quantile_s(0.5)
            told("saturated")
            meter = Meter(contestant.processes)
            seconds = _seconds(plan, 1 / picture_s)
            saturated = load.run(Closed(plan.clients, _BEGIN_PART * seconds), seconds, ramp_s=_RAMP_PART * seconds)
            usage = meter.read()
            at_part = {}
            for part in PARTS_OF_SATURATION if plan.has_latencies else ():
                told(f"{part:.0%} of {saturated.goodput:.1f} pictures/s")
                at_part[f"{part:g}"] = _latencies(load, plan, part * saturated.goodput)
    finally:
        contestant.stop()
    pictures = len(saturated.exchanges)
    return Measurement(
        contestant=contestant.name,
        round=number,
        pictures_per_s=saturated.goodput,
        p50_saturated_ms=1000 * saturated.quantile_s(0.5),
        cpu_ms=1000 * usage.cpu_s / pictures,
        cpu_ms_by_program={name: 1000 * cpu_s / pictures for name, cpu_s in usage.cpu_s_by_program.items()},
        busiest_part=usage.busiest_part,
        generator_cpu_ms=1000 * saturated.generator_cpu_s / pictures,
        io_bytes=usage.io_bytes / pictures,
        loopback_bytes=usage.loopback_bytes / pictures,
        resident_bytes=usage.resident_bytes,
        p50_one_client_ms=1000 * picture_s,
        idle_cores=idle_usage.cpu_s / _IDLE_S,
        idle_cores_by_program={name: cpu_s / _IDLE_S for name, cpu_s in idle_usage.cpu_s_by_program.items()},
        at_part=at_part,
    )


def _seconds(plan: Plan, rate: float) -> float:
    """That a measurement lasts, where so many pictures a second are to be expected."""
    return max(plan.seconds, min(_LONGEST_S, _LEAST_PICTURES / rate))


def _latencies(load: "_Loads", plan: Plan, rate: float) -> dict[str, float]:
    result = load.run(Open(rate, "poisson", plan.seed), _seconds(plan, rate))
    return {
        "rate": rate,
        "p50_ms": 1000 * result.quantile_s(0.5),
        "p99_ms": 1000 * result.quantile_s(0.99),
        "sent_late_ms": 1000 * result.sent_late_s(),
    }


@dataclass(frozen=True, slots=True)
class _Loads:
    """The loads of one contestant."""

    plan: Plan
    target: Target
    generator: LoadGenerator

    def run(self, pattern: Closed | Open, seconds: float, ramp_s: float = 0.0) -> LoadResult:
        """
        Raises:
            WrongAnswersError: Not every picture was answered.
        """
        result = self.generator.run(Load(self.target, self.plan.pictures, pattern, seconds, ramp_s, _TIMEOUT_S))
        bad = {status: count for status, count in result.statuses.items() if status not in result.good_statuses}
        if bad or math.isnan(result.quantile_s(0.5)):
            what = f"answers {bad} {dict(result.failures)}" if bad else "no answer in time to be measured"
            raise WrongAnswersError(f"{self.target.url}, {pattern}: {what}")
        return result


def _check(contestant: Contestant, target: Target, plan: Plan) -> None:
    """Asks for every picture once (for one, where answers mean nothing), and compares how many objects it has."""
    with httpx2.Client(timeout=_TIMEOUT_S) as client:
        for number, (picture, expected) in enumerate(zip(plan.pictures, plan.counts, strict=True)):
            files = {"file": ("picture.jpg", unique_jpeg(picture, number), "image/jpeg")}
            answer = client.post(target.url, files=files)
            if answer.status_code not in (200, 201):
                raise WrongAnswersError(f"{contestant.name} answered {answer.status_code}: {answer.text[:200]}")
            body = answer.json()
            count = body.get("detection", body)["count"]
            if not contestant.has_our_detector:
                return
            if count != expected:
                raise WrongAnswersError(
                    f"{contestant.name} finds {count} objects in picture {number}, the bare detector {expected}"
                )
