"""Processes started from this checkout: watched until they are ready, ended without a trace.

Every process that descends from a start carries a mark in its environment, so that stopping finds all of them (also
HAProxy, which outlives an interrupted `serve run`) and none that somebody else started.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "CIRCLES_STARTED_BY"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_POLL_PERIOD_S = 0.2
# Below those that the kernel gives to connections, and beside those of Serve's replicas.
_PORTS = range(20_000, 30_000)
_given_ports: set[int] = set()

open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""``urllib.request.urlopen`` for this machine's own addresses, which a proxy of the environment does not know."""


class LocalServiceError(Exception):
    """Something cannot be started, or is not running; the message says why, for people."""


class LocalProcess:
    """A program started from this checkout, with all that descends from it."""

    def __init__(self, log_path: Path, name: str) -> None:
        """
        Args:
            log_path: Where its output goes.
            name: Part of the mark of its processes, to tell several from each other.
        """
        self.log_path = log_path
        self._mark = f"{ROOT}:{name}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def has_started(self) -> bool:
        """Whether it was this object that started something, rather than another one before."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the program that this object started."""
        return self._started().pid

    def wait(self) -> int:
        """Waits until the program that this object started ends; its exit status."""
        return self._started().wait()

    def processes(self) -> list[psutil.Process]:
        """All processes that descend from a start, oldest first."""
        return _processes_with(self._mark)

    def commands(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """Those processes with their command lines, without any that end meanwhile."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if command := process.cmdline():
                    yield process, command

    def stop(self) -> int:
        """Ends all processes, gracefully first; how many there were."""
        count = stop_processes(self.processes)
        if self._process is not None:
            self._process.wait()  # it has ended; this takes its exit status, so that no zombie stays
        return count

    def launch(self, command: Sequence[str], environment: Mapping[str, str], working_folder: Path) -> None:
        """Starts the program in the background.

        Raises:
            LocalServiceError: It runs already.
        """
        self.check_is_absent()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                cwd=working_folder,
                env={**environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on, once
            )

    def check_is_absent(self) -> None:
        """
        Raises:
            LocalServiceError: It runs already.
        """
        if self.processes():
            raise LocalServiceError(f"it runs already (see {self.log_path}); `just clean` ends it")

    def wait_until_ready(self, url: str, failure: Callable[[], str | None] = lambda: None) -> None:
        """Waits until this address answers 200.

        Args:
            failure: Asked now and then; what it returns says why waiting is in vain.

        Raises:
            LocalServiceError: The program ended or failed, or the address does not answer in time.
        """
        process = self._started()
        deadline = time.monotonic() + _START_TIMEOUT_S
        next_question = time.monotonic()
        while not _answers(url):
            if process.poll() is not None:
                raise LocalServiceError(f"it ended with {process.returncode}:\n{self._log_end()}")
            if time.monotonic() >= next_question:
                reason = failure()
                if reason is not None:
                    raise LocalServiceError(reason)
                next_question = time.monotonic() + 2.0
            if time.monotonic() > deadline:
                raise LocalServiceError(f"not ready after {_START_TIMEOUT_S:g} s:\n{self._log_end()}")
            time.sleep(_POLL_PERIOD_S)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise LocalServiceError("this object started nothing")
        return self._process

    def _log_end(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-20:])


def free_port() -> int:
    """One port as ``free_ports`` gives them; raises as it does."""
    return free_ports(1)[0]


def free_ports(count: int) -> range:
    """Neighbouring ports of the loopback address, for servers that this process is about to start.

    Nobody has them just now, no connection is given one before it is used, and this process is given none twice:
    a server may need seconds until it binds its own.

    Raises:
        LocalServiceError: There are none.
    """
    for first in random.SystemRandom().sample(range(_PORTS.start, _PORTS.stop - count + 1), 100):
        ports = range(first, first + count)
        if _given_ports.isdisjoint(ports) and all(map(_is_free, ports)):
            _given_ports.update(ports)
            return ports
    raise LocalServiceError(f"{count} neighbouring ports from {_PORTS.start} to {_PORTS.stop - 1} are not free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def stop_all() -> int:
    """Ends whatever was started from this checkout, under any name; how many processes that were."""
    marks = {mark for mark, _ in _marked() if mark.startswith(f"{ROOT}:")}
    return sum(stop_processes(partial(_processes_with, mark)) for mark in sorted(marks))


def stop_processes(find: Callable[[], list[psutil.Process]]) -> int:
    """Interrupts the oldest process and lets it clean up, then ends what is left; how many there were."""
    seen: set[int] = set()
    for to_all, signal_number, patience_s in (
        (False, signal.SIGINT, _STOP_TIMEOUT_S),
        (True, signal.SIGTERM, 5.0),
        (True, signal.SIGKILL, 5.0),
    ):
        processes = find()
        seen.update(process.pid for process in processes)
        if not processes:
            break
        for process in processes if to_all else processes[:1]:
            try:
                process.send_signal(signal_number)
            except psutil.NoSuchProcess:
                continue
        waited_for = processes if to_all else processes[:1]
        psutil.wait_procs(waited_for, timeout=patience_s)
    return len(seen)


def take_port(port: int) -> None:
    """Keeps a port, which the caller is about to use, from being one of ``free_ports``.

    Raises:
        LocalServiceError: Somebody listens on it; the message says who.
    """
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            raise LocalServiceError(f"port {port} is taken by {_describe(connection.pid)}")
    _given_ports.add(port)


def _processes_with(mark: str) -> list[psutil.Process]:
    return sorted((process for its, process in _marked() if its == mark), key=lambda process: process.create_time())


def _marked() -> Iterator[tuple[str, psutil.Process]]:
    """All processes that carry a mark, with it."""
    for process in psutil.process_iter():
        try:
            mark = _mark_of(process)
            if mark and process.status() != psutil.STATUS_ZOMBIE:
                yield mark, process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone meanwhile, or another user's and so not ours


def _mark_of(process: psutil.Process) -> str:
    """Empty where it carries none.

    A process that gives itself a title, as Ray's do, may write it over the beginning of its environment, and zeros
    behind it; psutil reads no further than to those.
    """
    if not psutil.LINUX:
        return process.environ().get(MARK, "")
    try:
        entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error
    except PermissionError as error:
        raise psutil.AccessDenied(process.pid) from error
    prefix = f"{MARK}=".encode()
    return next((os.fsdecode(entry.removeprefix(prefix)) for entry in entries if entry.startswith(prefix)), "")


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()) or process.name()
        is_ours = _mark_of(process).startswith(f"{ROOT}:")
    except psutil.Error:
        return f"process {pid}"
    hint = " (started from this checkout: `just clean` ends it)" if is_ours else ""
    return f"process {pid}: {command[:200]}{hint}"


def _answers(url: str) -> bool:
    try:
        with open_directly(url, timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False
