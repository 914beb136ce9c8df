"""A stopgap for the time after HAProxy died, until Ray Serve has noticed and started another one.

Serve notices by three health checks, a second apart, then starts a new manager, and that one a new HAProxy: eight
seconds in which nobody listens. So each HAProxy has a watcher, a process of its own. When HAProxy ends and no newer one
has taken its place, the watcher starts another one with the configuration as it was last. Serve's next HAProxy takes
the port over from it, as it does from its own ones. Where Serve ended HAProxy on purpose, the stopgap ends with its Ray
node, or after a while.
"""

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import time
import traceback
from pathlib import Path

_LONGEST_S = 30.0
_SOFT_STOP_S = 5.0


def watch(config_path: Path, program: str) -> None:
    """Has a process of its own watch this one, which is about to become HAProxy.

    Args:
        config_path: HAProxy's.
        program: HAProxy itself.

    Raises:
        OSError: It cannot be watched here.
    """
    pid = os.getpid()
    _newest_path(config_path).write_text(str(pid), encoding="ascii")
    node_pid = _parent_of(os.getppid())  # Serve's manager is our parent, and the Ray node's own process the manager's
    haproxy, node = os.pidfd_open(pid), os.pidfd_open(node_pid)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.close(haproxy)
        os.close(node)
        return
    try:
        os.setsid()  # what ends the manager and all of its group does not end the watcher
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            _stand_by(pid, haproxy, node, config_path, program)
    except Exception:  # noqa: BLE001 - this process has no other way to tell
        traceback.print_exc()  # into the file that Serve keeps of HAProxy's errors
    finally:
        os._exit(0)  # never back to where this process was forked from


def running_stopgap(config_path: Path) -> int | None:
    """The process that holds the port until somebody takes it over."""
    try:
        pid = int(_stopgap_path(config_path, "pid").read_text(encoding="ascii"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    # A number may be given again.
    return pid if str(_stopgap_path(config_path, "cfg")).encode() in command.split(b"\0") else None


def _stand_by(pid: int, haproxy: int, node: int, config_path: Path, program: str) -> None:
    if not _is_first_to_end(haproxy, node):
        return
    if _newest_path(config_path).read_text(encoding="ascii") != str(pid):
        return  # it was replaced
    with _stopgap_path(config_path, "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another stopgap's, from which it had not taken over yet
        stopgap_config = _stopgap_path(config_path, "cfg")
        stopgap_config.write_text(_without_socket(config_path.read_text(encoding="utf-8")), encoding="utf-8")
        ends_at = time.monotonic() + _LONGEST_S
        command = [program, "-db", "-f", str(stopgap_config)]
        while _run(command, _stopgap_path(config_path, "pid"), node, ends_at):
            pass  # whatever killed HAProxy may kill what stands in for it, too


def _run(command: list[str], pid_path: Path, node: int, ends_at: float) -> bool:
    """Until it was taken over from, or the node ends, or it is time (monotonic); whether it was killed instead."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    pid_path.write_text(str(process.pid), encoding="ascii")
    stopgap = os.pidfd_open(process.pid)
    is_nodes_end = _is_first_to_end(node, stopgap, timeout_s=max(0.0, ends_at - time.monotonic()))
    os.close(stopgap)
    if not is_nodes_end and process.poll() is not None:
        return process.returncode < 0
    if not is_nodes_end:
        process.send_signal(signal.SIGUSR1)  # what it has begun it finishes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SOFT_STOP_S)
    process.kill()
    process.wait()
    return False


def _is_first_to_end(first: int, second: int, timeout_s: float | None = None) -> bool:
    """Waits until one of two processes ends; False also when neither did in time."""
    ends = select.poll()
    for process in (first, second):
        ends.register(process, select.POLLIN)
    ended = [descriptor for descriptor, _ in ends.poll(None if timeout_s is None else 1000 * timeout_s)]
    return first in ended and second not in ended


def _without_socket(configuration: str) -> str:
    """Serve asks by this socket whether its own HAProxy is alive."""
    return re.sub(r"^\s+stats socket .*\n", "", configuration, flags=re.MULTILINE)


def _parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"^PPid:\s+(\d+)$", status, re.MULTILINE)[0])


def _newest_path(config_path: Path) -> Path:
    return config_path.with_suffix(".pid")


def _stopgap_path(config_path: Path, suffix: str) -> Path:
    return config_path.with_name(f"stopgap.{suffix}")
