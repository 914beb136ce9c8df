"""What a set of processes uses, as the kernel counts it: processor time, memory, bytes."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes used between two looks at them."""

    cpu_s: float
    """Processor time, in user and kernel mode."""
    io_bytes: int
    """What they read and wrote by read() and write(): files, pipes, and sockets where their library does it so."""
    loopback_bytes: int
    """What went over the loopback interface meanwhile, whoever sent it."""
    resident_bytes: int
    """Resident memory at the end; pages that several share count once (proportional set size)."""


class Meter:
    """Looks at processes now, and again when asked."""

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        """
        Args:
            processes: Says which ones, anew at each look; all that descend from them count too. One that ends between
                the looks is not counted.
        """
        self._find = processes
        self._before = {process.pid: _counters(process) for process in _with_descendants(self._find())}
        self._loopback_before = _loopback_bytes()

    def read(self) -> Usage:
        """What they used since the first look; those that came since count from nothing."""
        loopback_bytes = _loopback_bytes() - self._loopback_before
        cpu_s, io_bytes, resident_bytes = 0.0, 0, 0
        for process in _with_descendants(self._find()):
            cpu_before, io_before = self._before.get(process.pid, (0.0, 0))
            cpu_now, io_now = _counters(process)
            cpu_s += max(0.0, cpu_now - cpu_before)
            io_bytes += max(0, io_now - io_before)
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                resident_bytes += process.memory_full_info().pss
        return Usage(cpu_s, io_bytes, loopback_bytes, resident_bytes)


def _with_descendants(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in processes:
        found[process.pid] = process
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update((child.pid, child) for child in process.children(recursive=True))
    return list(found.values())


def _counters(process: psutil.Process) -> tuple[float, int]:
    """Processor seconds and bytes of a process's life so far; nothing of one that is gone."""
    try:
        times = process.cpu_times()
        counters = process.io_counters()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0, 0
    return times.user + times.system, counters.read_chars + counters.write_chars


def _loopback_bytes() -> int:
    """What the loopback interface carried since the machine started, each byte counted once."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0
