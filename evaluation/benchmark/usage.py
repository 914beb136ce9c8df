"""What a set of processes uses, as the kernel counts it: processor time, memory, bytes."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes used between two looks at them."""

    cpu_s_by_program: Mapping[str, float]
    """Processor time, in user and kernel mode, by ``program_of``."""
    busiest_cpu_s: float
    """That of the one process which used most."""
    io_bytes: int
    """What they read and wrote by read() and write(): files, pipes, and sockets where their library does it so."""
    loopback_bytes: int
    """What went over the loopback interface meanwhile, whoever sent it."""
    resident_bytes: int
    """Resident memory at the end; pages that several share count once (proportional set size)."""

    @property
    def cpu_s(self) -> float:
        """Processor time of all programs."""
        return sum(self.cpu_s_by_program.values())

    @property
    def busiest_part(self) -> float:
        """The busiest process's part of all processor time; 0 when nothing was used."""
        return self.busiest_cpu_s / self.cpu_s if self.cpu_s else 0.0


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
        cpu_s: defaultdict[str, float] = defaultdict(float)
        busiest_cpu_s, io_bytes, resident_bytes = 0.0, 0, 0
        for process in _with_descendants(self._find()):
            cpu_before, io_before = self._before.get(process.pid, (0.0, 0))
            cpu_now, io_now = _counters(process)
            io_bytes += max(0, io_now - io_before)
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                used_s = max(0.0, cpu_now - cpu_before)
                cpu_s[program_of(process.cmdline())] += used_s
                busiest_cpu_s = max(busiest_cpu_s, used_s)
                resident_bytes += process.memory_full_info().pss
        return Usage(cpu_s, busiest_cpu_s, io_bytes, loopback_bytes, resident_bytes)


_ACTOR = re.compile(r"ray::(?:ServeReplica:\w+:)?(\w+)")
_FORKED = re.compile(r"from (multiprocessing\.\w+) import")


def program_of(command: Sequence[str]) -> str:
    """What a process is called in reports: the deployment or actor of a Ray worker, the module or script of a Python
    process, else the program's file name.

    Args:
        command: As the kernel has it; Ray and others put titles there, and processes that end have none.
    """
    if not command:
        return "ending"
    if actor := _ACTOR.match(command[0]):
        return actor.group(1)
    name, arguments = Path(command[0].partition(" ")[0]).name, list(command[1:])
    if not name.startswith("python"):
        return name.rstrip(":")
    while arguments and arguments[0].startswith("-") and arguments[0] not in ("-m", "-c"):
        del arguments[0]
    if len(arguments) < 2 or arguments[0] not in ("-m", "-c"):
        return Path(arguments[0]).name if arguments else name
    if forked := _FORKED.match(arguments[1]):
        return forked.group(1)
    return arguments[1] if arguments[0] == "-m" else name


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
