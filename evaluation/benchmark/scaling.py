"""How this application scales, apart from detection: with a detector that only waits (``programs/waiting.py``).

And from zero, with the real one.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml
from matplotlib.figure import Figure

from deployments.spare_worker import IDLE_TITLE
from evaluation.benchmark.contestants import OtherApplication, wait_until_running
from evaluation.benchmark.load import (
    Closed,
    Load,
    LoadGenerator,
    LoadResult,
    Open,
    RunningLoad,
    Target,
    run_load,
    started_load,
)
from evaluation.benchmark.pictures import unique_jpeg
from serve_app.local import LocalService, Ports
from serve_app.processes import LocalServiceError, free_port, free_ports

_TIMES_THE_CALM = 20
_APPLICATION = "evaluation.benchmark.programs.waiting:build_app"
_TIMEOUT_S = 300.0
_POLL_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """What so many replicas did."""

    replicas: int
    pictures_per_s: float
    ideal_per_s: float
    """If nothing took time but the detector's waiting."""
    p50_s: float
    start_s: float
    """From nothing until all of them run."""


def measure_replicas(
    pictures: tuple[bytes, ...], count: int, wait_s: float, seconds: float, folder: Path, nodes: int = 1
) -> ReplicaCount:
    """Asks with twice as many clients as there are replicas, so that each always has work.

    Args:
        folder: For data and logs; fresh.
        nodes: Of Ray, all on this machine, with equally many replicas each; the first one has the rest of the
            application too.
    """
    began = time.monotonic()
    with _running(folder, str(count), wait_s, 4 * count, nodes, -(-count // nodes)) as (_, target):
        start_s = time.monotonic() - began
        load = Load(target, pictures, Closed(2 * count), seconds + 3 * wait_s, 3 * wait_s, _TIMEOUT_S)
        result = run_load(load)
    return ReplicaCount(count, result.goodput, count / wait_s, result.quantile_s(0.5), start_s)


@dataclass(frozen=True, slots=True)
class Burst:
    """A calm, a burst, and a calm again; times in seconds since the calm began."""

    burst: tuple[float, float]
    """From when until when."""
    answers: tuple[tuple[float, float], ...]
    """When a request should have begun, and its latency in seconds."""
    lost: int
    """Requests that were answered otherwise or not at all."""
    replicas: tuple[tuple[float, int], ...]
    """How many ran, as Serve said over time."""

    def latencies_s(self, *, in_burst: bool) -> list[float]:
        """Of what began in the burst, or outside it."""
        begin, end = self.burst
        return [latency for intended, latency in self.answers if (begin <= intended < end) == in_burst]

    def unanswered(self) -> list[tuple[float, int]]:
        """How many requests wait or are worked on, from each time on at which that changes."""
        begun = [intended for intended, _ in self.answers]
        ended = [intended + latency for intended, latency in self.answers]
        changes = sorted([(time, 1) for time in begun] + [(time, -1) for time in ended])
        return list(zip((time for time, _ in changes), accumulate(change for _, change in changes), strict=True))

    def first_at_s(self, is_so: Callable[[int], bool], from_s: float) -> float | None:
        """How long after a time the number of replicas was so for the first time; None: never."""
        return next((time - from_s for time, count in self.replicas if time >= from_s and is_so(count)), None)


def measure_burst(
    pictures: tuple[bytes, ...],
    most: int,
    wait_s: float,
    calm_s: float,
    burst_s: float,
    folder: Path,
    *,
    is_steady: bool = False,
) -> Burst:
    """For a while, twenty times as much as before: what ``most`` replicas can do at 80 %. Before, one suffices.

    Args:
        is_steady: More and more comes until the end of the burst, instead of all at once.
    """
    peak_rate = 0.8 * most / wait_s
    calm_rate = peak_rate / _TIMES_THE_CALM
    more = peak_rate - calm_rate
    total_s = 2 * calm_s + burst_s
    with _running(folder, f"1-{most}", wait_s, 10_000) as (local, target):
        watched = _Watched(local)
        calm_load = Load(target, pictures, Open(calm_rate), total_s, timeout_s=_TIMEOUT_S)
        burst_load = replace(calm_load, pattern=Open(0.0, last_rate=more) if is_steady else Open(more), seconds=burst_s)
        with started_load(calm_load) as calm, LoadGenerator() as generator:
            watched.until(lambda: watched.seconds >= calm_s)
            results = [watched.through(generator.start(burst_load)), watched.through(calm)]
    answers = sorted(answer for result in results for answer in _answers(result, watched.began_s))
    first_s = results[0].began_at_s - watched.began_s
    lost = sum(len(result.exchanges) for result in results) - len(answers)
    return Burst((first_s, first_s + burst_s), tuple(answers), lost, tuple(watched.replicas))


def plot_burst(burst: Burst, path: Path) -> None:
    """Over time: latencies, how many requests are unanswered, and replicas."""
    figure = Figure(figsize=(7, 5.4), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    upper.plot(*zip(*burst.answers, strict=True), ".", color="#2a7f4f", markersize=3)
    upper.set(ylabel="latency, s")
    middle.step(*zip(*burst.unanswered(), strict=True), where="post", color="#2a7f4f")
    middle.set(ylabel="unanswered")
    lower.step(*zip(*burst.replicas, strict=True), where="post", color="black")
    lower.set(xlabel="s", ylabel="replicas")
    for axes in (upper, middle, lower):
        axes.set_ylim(bottom=0)
        axes.axvspan(*burst.burst, color="#c93434", alpha=0.1, linewidth=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


@dataclass(frozen=True, slots=True)
class Wake:
    """A first answer while no detector replica runs, and the next one."""

    first_s: float
    first_status: int
    """202 where the client was not kept waiting until a replica ran."""
    next_s: float


def measure_wake(pictures: tuple[bytes, ...], folder: Path) -> Wake:
    """Uploads two pictures to an application whose detector sleeps, and which has come to rest, as such ones have.

    Args:
        folder: For data and logs; fresh.
    """
    local = LocalService(folder / "run", name=f"wake-{os.getpid()}")
    with _started(local, folder, {"DETECTOR_MIN_REPLICAS": "0", "MODE": "real"}) as target:
        answers = []
        _wait_for_spare_worker(local)
        with httpx2.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
            client.get(target.url)  # what the ingress does first is not the detector's
            for number, picture in enumerate(pictures[:2]):
                began = time.monotonic()
                answer = client.post(target.url, files={"file": unique_jpeg(picture, number)})
                answers.append((time.monotonic() - began, answer.status_code))
    (first_s, first_status), (next_s, _) = answers
    return Wake(first_s, first_status, next_s)


def _wait_for_spare_worker(local: LocalService) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not any(command[0] == IDLE_TITLE for _, command in local.commands()):
        if time.monotonic() > deadline:
            raise LocalServiceError(f"no worker is idle after {_TIMEOUT_S:g} s")
        time.sleep(_POLL_PERIOD_S)


class _WaitingService(OtherApplication):
    """Serve with the application whose detector waits, on one node or several."""

    def __init__(self, run_folder: Path, name: str) -> None:
        super().__init__(run_folder, name, _APPLICATION)

    def add_node(self) -> None:
        """Starts another node of its Ray, to be ended with it; returns when it has joined.

        Raises:
            LocalServiceError: It does not.
        """
        command = [str(Path(sys.executable).parent / "ray"), "start", f"--address={self.ray_address}"]
        # What Serve's workers read, and the mark of this service. A local Ray makes a token, and shows it only to those
        # who ask for it.
        environment = {**psutil.Process(self.pid).environ(), "RAY_AUTH_MODE": "token"}
        options = ["--num-cpus=1", f"--dashboard-agent-listen-port={free_port()}"]
        started = subprocess.run([*command, *options], env=environment, check=False, capture_output=True, text=True)  # noqa: S603
        if started.returncode != 0:
            raise LocalServiceError(f"no node joins:\n{started.stderr}")

    def _config(self, ports: Ports) -> Path:
        path = super()._config(ports)
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["proxy_location"] = "HeadOnly"  # other nodes of this machine would want the same ports
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path


@contextmanager
def _running(
    folder: Path, replicas: str, wait_s: float, in_flight: int, nodes: int = 1, most_per_node: int | None = None
) -> Iterator[tuple[LocalService, Target]]:
    local = _WaitingService(folder / "run", name=f"scaling-{os.getpid()}")
    environment = {
        "DETECTION_TIMEOUT_S": str(_TIMEOUT_S),
        "MAX_IN_FLIGHT": str(in_flight),
        "WAITING_REPLICAS": replicas,
        "WAITING_S": str(wait_s),
    }
    if most_per_node is not None:
        environment["WAITING_PER_NODE"] = str(most_per_node)
    with _started(local, folder, environment) as target:
        for _ in range(1, nodes):
            local.add_node()
        wait_until_running(local, _TIMEOUT_S)
        yield local, target


@contextmanager
def _started(local: LocalService, folder: Path, settings: dict[str, str]) -> Iterator[Target]:
    data = {"DATABASE_URL": f"sqlite:///{folder}/data/db.sqlite3", "STORAGE_URL": f"file:{folder}/data/images"}
    ports = Ports(*free_ports(4))
    local.start({**data, **settings}, ports)
    try:
        yield Target(f"http://127.0.0.1:{ports.http}/images/")
    finally:
        local.stop()


class _Watched:
    """How many replicas run, over time."""

    def __init__(self, local: LocalService) -> None:
        self.began_s = time.monotonic()
        self.replicas: list[tuple[float, int]] = []
        self._local = local

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.began_s

    def until(self, condition: Callable[[], bool]) -> None:
        """Watches until this is so."""
        while not condition():
            self.replicas.append((self.seconds, _running_replicas(self._local.application_status())))
            time.sleep(_POLL_PERIOD_S)

    def through(self, load: RunningLoad) -> LoadResult:
        """Watches until a load has ended; what came of it."""
        self.until(lambda: load.has_ended)
        return load.result()


def _running_replicas(status: dict[str, Any]) -> int:
    detector = status.get("deployments", {}).get("Detector", {})
    return sum(replica["state"] == "RUNNING" for replica in detector.get("replicas", ()))


def _answers(result: LoadResult, began_s: float) -> Iterator[tuple[float, float]]:
    for exchange in result.exchanges:
        if exchange.status in result.good_statuses:
            yield result.began_at_s - began_s + exchange.intended_s, exchange.latency_s
