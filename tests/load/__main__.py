"""``python -m tests.load``: starts a service, and puts it under load."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from evaluation.benchmark.load import GOOD_STATUSES, Closed, Load, Target, run_load
from evaluation.benchmark.pictures import drawn_pictures
from tests.load.overload import ANSWERS, Overload, burst, overload
from tests.load.soak import Soaked, soak
from tests.serving import RunningServe, running_serve

# What the overload is measured against.
LEAST_GOODPUT = 0.9
"""Of the peak."""
REFUSED_WITHIN_S = 0.2
ACCEPTED_WITHIN_S = 10.0
"""DETECTION_TIMEOUT_S: then an upload is kept, and answered 202."""
RECOVERED_WITHIN_S = 5.0
MOST_GROWTH = 0.05
"""Of memory."""

_PICTURES = 32

app = typer.Typer(help=__doc__, add_completion=False)
console = Console(soft_wrap=True)


@app.command("overload")
def overload_command(
    seconds: Annotated[float, typer.Option(help="For each load.", min=4)] = 20.0,
    uploads: Annotated[int, typer.Option(help="How many large pictures come at once at the end.", min=1)] = 500,
    megabytes: Annotated[float, typer.Option(help="Of each of them.", min=0.1, max=24)] = 20.0,
) -> None:
    """Offer 1, 2, 5 and 10 times what it can do, then many large pictures at once; fails when it cannot stand that."""

    def run(service: RunningServe) -> list[str]:
        found = overload(service, drawn_pictures(_PICTURES), seconds)
        print_overload(found)
        breaches = overload_breaches(found)
        alive = service.replica_pids()
        result, watched = burst(service, large_jpeg(int(megabytes * 2**20)), uploads)
        said = ", ".join(f"{count} x {status}" for status, count in sorted(result.statuses.items()))
        console.print(f"{uploads} uploads of {megabytes:g} MiB at once: {said}")
        for role in watched.samples:
            mib = watched.most_bytes(role) / 2**20
            console.print(f"  {role}: at most {mib:.0f} MiB, {watched.most_files(role)} open files")
        if not set(result.statuses) <= ANSWERS:
            breaches.append(f"the burst was answered {said}; {dict(result.failures)}")
        if service.replica_pids() != alive:
            breaches.append("a replica did not survive the burst")
        return breaches

    _with_service(run)


@app.command("soak")
def soak_command(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.2)] = 30.0,
    load: Annotated[float, typer.Option(help="Part of what the service can do.", min=0.05, max=1)] = 0.5,
) -> None:
    """Keep it busy for long; fails when memory grows, or anything is not answered."""

    def run(service: RunningServe) -> list[str]:
        pictures = drawn_pictures(_PICTURES)
        target = Target(f"{service.url}/images/")
        capacity = run_load(Load(target, pictures, Closed(16), 20, warm_up_s=5)).goodput
        found = soak(service, pictures, load * capacity, 60 * minutes)
        print_soaked(found)
        return soak_breaches(found)

    _with_service(run)


def overload_breaches(found: Overload) -> list[str]:
    """What of it is not as promised."""
    breaches = []
    for step in found.steps:
        name = f"at {step.factor:g} times its capacity"
        if step.goodput < LEAST_GOODPUT * min(found.capacity, step.offered):
            breaches.append(f"{name} it answers {step.goodput:.1f} pictures/s, {found.capacity:.1f} at its best")
        if not set(step.statuses) <= ANSWERS:
            breaches.append(f"{name} it answered {dict(step.statuses)}")
        if step.bare_refusals:
            breaches.append(f"{name} {step.bare_refusals} refusals named no time to come back")
        if step.refused_s[1] > REFUSED_WITHIN_S:
            breaches.append(f"{name} the 99th percentile of refusals takes {step.refused_s[1]:.2f} s")
        if step.accepted_s[1] > ACCEPTED_WITHIN_S:
            breaches.append(f"{name} the 99th percentile of what it accepts takes {step.accepted_s[1]:.2f} s")
        if step.recovery_s > RECOVERED_WITHIN_S:
            breaches.append(f"{name} it was itself again after {step.recovery_s:.1f} s")
    return breaches


def soak_breaches(found: Soaked) -> list[str]:
    """What of it is not as promised."""
    breaches = [
        f"memory of {role} grew by {growth.memory:.1%}"
        for role, growth in found.growth.items()
        if growth.memory > MOST_GROWTH
    ]
    if not set(found.result.statuses) <= GOOD_STATUSES:
        breaches.append(f"uploads were answered {dict(found.result.statuses)}; {dict(found.result.failures)}")
    wrong = {
        status: count for status, count in found.readers_statuses.items() if status.split()[1] not in ("200", "204")
    }
    if wrong:
        breaches.append(f"readers were answered {wrong}")
    return breaches


def print_overload(found: Overload) -> None:
    """A table of all loads."""
    table = Table(
        *("load", "offered/s", "done/s", "answers", "accepted p50, p99 s", "refused p50, p99 ms", "recovered s"),
        title=f"capacity {found.capacity:.1f} pictures/s, one alone {found.unloaded_s * 1000:.0f} ms",
    )
    for step in found.steps:
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(step.statuses.items()))
        refused = "{:.0f}, {:.0f}".format(*(1000 * each for each in step.refused_s))
        accepted = "{:.2f}, {:.2f}".format(*step.accepted_s)
        row = (f"{step.factor:g} x", f"{step.offered:.0f}", f"{step.goodput:.1f}", answers, accepted, refused)
        table.add_row(*row, f"{step.recovery_s:.1f}")
    console.print(table)


def print_soaked(found: Soaked) -> None:
    """Tables of memory and latency."""
    table = Table("processes", "MiB, second quarter", "MiB, last quarter", "growth", "open files")
    for role, growth in sorted(found.growth.items()):
        sizes = (growth.earlier.resident_bytes / 2**20, growth.later.resident_bytes / 2**20)
        files = f"{growth.earlier.open_files}, {growth.later.open_files}"
        table.add_row(role, *(f"{size:.0f}" for size in sizes), f"{growth.memory:+.1%}", files)
    console.print(table)
    (median, tail), (later_median, later_tail) = found.latency_s
    console.print(
        f"{len(found.result.exchanges)} uploads at {found.result.rate:.1f}/s: {dict(found.result.statuses)}; "
        f"median {1000 * median:.0f} ms, then {1000 * later_median:.0f}; p99 {1000 * tail:.0f} ms, then "
        f"{1000 * later_tail:.0f}"
    )
    console.print(f"readers: {dict(found.readers_statuses)}")


def large_jpeg(min_bytes: int) -> bytes:
    """A photograph's worth of noise, in a file of at least so many bytes."""
    rng = np.random.default_rng(1)
    side = 1000  # px
    while True:
        coarse = rng.integers(0, 255, (side // 4, side // 4, 3), dtype=np.uint8)
        encoded = cv2.imencode(".jpg", cv2.resize(coarse, (side, side)), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
        if len(encoded) >= min_bytes:
            return encoded
        side = int(side * 1.1)


def _with_service(run: Callable[[RunningServe], list[str]]) -> None:
    """Starts a service with one detector replica, so that the load's own cost falls on another core."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_serve(Path(folder), DETECTOR_MAX_REPLICAS="1") as service,
    ):
        breaches = run(service)
    for breach in breaches:
        console.print(f"BREACH {breach}", markup=False, highlight=False)
    console.print(f"{len(breaches)} breaches")
    raise typer.Exit(1 if breaches else 0)


if __name__ == "__main__":
    app()
