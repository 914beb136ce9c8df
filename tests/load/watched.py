"""Memory and open files of a service's processes, looked at while it works."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psutil

from tests.serving import RunningServe

_PERIOD_S = 1.0


@dataclass(frozen=True)
class Sample:
    """What a role's processes had together."""

    resident_bytes: int
    open_files: int
    """File descriptors, those of sockets among them."""


@dataclass
class Watched:
    """A context in which a service's processes are looked at once a second."""

    service: RunningServe
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    """By role, in the order of time."""
    _has_ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_ended.set()
        assert self._thread is not None
        self._thread.join()

    def most_bytes(self, role: str) -> int:
        """Of all samples."""
        return max(sample.resident_bytes for sample in self.samples[role])

    def most_files(self, role: str) -> int:
        """Of all samples."""
        return max(sample.open_files for sample in self.samples[role])

    def _watch(self) -> None:
        while True:
            for role, sample in _samples(self.service).items():
                self.samples[role].append(sample)
            if self._has_ended.wait(_PERIOD_S):
                return


def _samples(service: RunningServe) -> dict[str, Sample]:
    resident: dict[str, int] = defaultdict(int)
    files: dict[str, int] = defaultdict(int)
    for process in service.local.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            for role in _roles(process):
                resident[role] += process.memory_info().rss
                files[role] += process.num_fds()
    return {role: Sample(resident[role], files[role]) for role in resident}


def _roles(process: psutil.Process) -> Iterator[str]:
    command = " ".join(process.cmdline())
    for role, sign in (
        ("ingress", "ray::ServeReplica:circles:Ingress"),
        ("detector", "ray::ServeReplica:circles:Detector"),
        ("detector's process", "circles.detectors.guarded_process"),
        ("HAProxy", "haproxy -"),
        ("controller", "ray::ServeController"),
        ("raylet", "raylet/raylet"),
    ):
        if sign in command:
            yield role
