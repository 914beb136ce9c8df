"""Kills: SIGKILL of one process after the other, in rounds of all kinds that are there, each in an order of chance."""

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.chaos.uploads import Uploads
from tests.serving import RunningServe

PERIOD_S = 1.0
"""Between two kills, at least."""

_GIVE_UP_S = 120.0
_POLL_PERIOD_S = 0.02

_TITLES = {
    "detector replica": "ray::ServeReplica:circles:Detector",
    "ingress replica": "ray::ServeReplica:circles:Ingress",
    "proxy (HAProxy)": "/haproxy -db",
    "proxy's manager": "ray::HAProxyManager",
    "fallback proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
    "detector's child": "circles.detectors",
}
"""What stands in the command line of each kind of process."""

_OTHER_WORKER = "raylet worker (other)"
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""No workers, but parts of the raylet, which ends with each of them, and the node with it: what a power cut is for."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One that counts: an upload that began after it was acknowledged."""

    kind: str
    recovery_s: float
    """From the kill to the acknowledgement of an upload that began after it."""


class NotBackError(Exception):
    """The service did not acknowledge anything any more."""


def kinds_present(service: RunningServe) -> dict[str, list[psutil.Process]]:
    """The processes that may be killed, by kind."""
    found: dict[str, list[psutil.Process]] = {}
    for process, arguments in service.local.commands():
        command = " ".join(arguments)
        kinds = [kind for kind, title in _TITLES.items() if title in command]
        if not kinds and command.startswith("ray::") and not command.startswith(_AGENTS):
            kinds = [_OTHER_WORKER]
        for kind in kinds:
            found.setdefault(kind, []).append(process)
    return found


def kill_one_after_the_other(
    service: RunningServe,
    uploads: Uploads,
    count: int,
    chance: random.Random,
    told: Callable[[Kill], None],
    back_s: float,
) -> list[str]:
    """Kills so many processes while uploads run, each when the service has recovered from the one before.

    Args:
        told: Called with each kill that counts, when it does.
        back_s: In which the service acknowledges uploads again.

    Returns:
        What took longer than ``back_s``.

    Raises:
        NotBackError: The service is not back after ``_GIVE_UP_S``.
    """
    breaches = []
    round_so_far: set[str] = set()
    wait_for_acknowledgement(uploads, since=time.monotonic())
    for _ in range(count):
        kind, killed_at = _kill_one(service, chance, round_so_far)
        try:
            recovery_s = wait_for_acknowledgement(uploads, killed_at)
        except NotBackError as error:
            raise NotBackError(f"after a kill of {kind}: {error}") from error
        if recovery_s > back_s:
            breaches.append(f"{kind} killed: no upload was acknowledged for {recovery_s:.1f} s")
        told(Kill(kind, recovery_s))
        time.sleep(max(0.0, killed_at + PERIOD_S - time.monotonic()))
    return breaches


def wait_for_acknowledgement(uploads: Uploads, since: float) -> float:
    """Seconds from this moment (monotonic) to the acknowledgement of an upload that began after it.

    Raises:
        NotBackError: There is none in ``_GIVE_UP_S``.
    """
    while uploads.newest_start <= since:
        if time.monotonic() > since + _GIVE_UP_S:
            raise NotBackError(f"nothing was acknowledged for {_GIVE_UP_S:g} s")
        time.sleep(_POLL_PERIOD_S)
    return time.monotonic() - since


def wait_for_serves_haproxy(service: RunningServe) -> None:
    """Until nothing stands in its place any more: to take over from that ends its idle connections.

    Raises:
        NotBackError: It still does after ``_GIVE_UP_S``.
    """
    deadline = time.monotonic() + _GIVE_UP_S
    while any("/stopgap.cfg" in " ".join(command) for _, command in service.local.commands()):
        if time.monotonic() > deadline:
            raise NotBackError(f"Serve has started no HAProxy for {_GIVE_UP_S:g} s")
        time.sleep(_POLL_PERIOD_S)


def _kill_one(service: RunningServe, chance: random.Random, round_so_far: set[str]) -> tuple[str, float]:
    """Of a kind that is not among those of this round, by chance; when all that are there are, the next one begins."""
    while True:
        present = kinds_present(service)
        if not present:
            raise NotBackError("no process is left that could be killed")
        if present.keys() <= round_so_far:
            round_so_far.clear()
        kind = chance.choice(sorted(present.keys() - round_so_far))
        process = chance.choice(sorted(present[kind], key=lambda process: process.pid))
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself: another one, then
            process.kill()
            round_so_far.add(kind)
            return kind, time.monotonic()


def cut_power(service: RunningServe) -> None:
    """SIGKILL of everything at once, and of whatever appears meanwhile."""
    while processes := service.local.processes():
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=5)
    service.local.stop()  # takes the exit status of the one that was ours
