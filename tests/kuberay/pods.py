"""Pods as one machine can have them: each a set of processes with a network, a file system and a user of its own.

Linux namespaces make them, as a container runtime would: an address on a bridge, all ports its own, a read-only root,
only what is mounted writable, no capabilities. Needs root.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from serve_app.processes import ROOT
from tests.servers import absent

_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "wget")
_PATH = f"{ROOT}/.venv/bin:/usr/local/bin:/usr/bin:/bin"
# A bridge without one of its own takes that of a port, and another's when that pod goes: all pods would then send to
# nobody for some ten seconds.
_BRIDGE_HARDWARE_ADDRESS = "02:00:00:00:00:01"

# Runs as root in the new namespaces. $CODE and $PYTHON are what the image would hold; they may lie below a path that is
# mounted over, or below one that only root may enter.
_MOUNT = """
set -eu
mount --make-rprivate /
mount --bind "$CODE" /mnt
mount --bind "$PYTHON" /srv
while read -r source target; do if [ -n "$source" ]; then mount --bind "$source" "$target"; fi; done <<BOUND
$BOUND
BOUND
for target in $EMPTY; do mount -t tmpfs -o mode=1777 tmpfs "$target"; done
mount -t tmpfs -o mode=755 tmpfs /root
mkdir -p "$CODE" "$PYTHON"
mount --move /mnt "$CODE"
mount --move /srv "$PYTHON"
mount -o remount,bind,ro "$CODE"
mount -o remount,bind,ro /
cd "$CODE"
exec setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \\
    env -i bash -c "$PROGRAM"
"""


def need_namespaces() -> None:
    """Skips the test where pods cannot be made."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        absent(f"{', '.join(missing)} is not installed")
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("namespaces cannot be made here, which needs root and CAP_SYS_ADMIN")


@dataclass(frozen=True)
class PodNetwork:
    """A bridge that pods hang on; the test is on it too."""

    name: str
    prefix: str
    """The first three bytes of its addresses."""

    @property
    def address(self) -> str:
        """The test's own."""
        return f"{self.prefix}.1"


@contextlib.contextmanager
def pod_network() -> Iterator[PodNetwork]:
    """A network for pods, gone afterwards."""
    # Of this process alone, so that two test runs on a machine do not meet.
    network = PodNetwork(f"cir{os.getpid()}", f"10.213.{os.getpid() % 256}")
    _ip("link", "add", network.name, "address", _BRIDGE_HARDWARE_ADDRESS, "type", "bridge")
    try:
        _ip("address", "add", f"{network.address}/24", "dev", network.name)
        _ip("link", "set", network.name, "up")
        yield network
    finally:
        _ip("link", "delete", network.name)


@contextlib.contextmanager
def forwarded(network: PodNetwork, port: int) -> Iterator[str]:
    """A loopback port of this machine, for pods: its address on their network."""
    is_up = threading.Event()
    ends: list[Callable[[], object]] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(asyncio.CancelledError):  # at the end; streams cannot tell it from a failure
            await asyncio.gather(_pump(reader, their_writer), _pump(their_reader, writer))

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        async with await asyncio.start_server(forward, network.address, port):
            is_up.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert is_up.wait(10)
    try:
        yield f"{network.address}:{port}"
    finally:
        ends[0]()
        thread.join()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
    finally:
        writer.close()


@dataclass
class Pod:
    """One pod, from ``start`` to ``kill``."""

    name: str
    network: PodNetwork
    number: int
    """2 to 254: the last byte of its address."""
    program: str
    """What bash runs in it."""
    environment: Mapping[str, str]
    log: Path
    empty_folders: Sequence[str] = ()
    """Paths with an empty file system of this pod's own."""
    bound_folders: Mapping[str, Path] = field(default_factory=dict)
    """Path in the pod -> folder of this machine."""
    user_id: int = 1000
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _made_folders: list[Path] = field(default_factory=list, init=False)

    @property
    def address(self) -> str:
        """On the network."""
        return f"{self.network.prefix}.{self.number}"

    def start(self) -> None:
        """Returns when its program was started."""
        namespace, link = self._namespace, self._link
        _ip("netns", "add", namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", link, "master", self.network.name, "up")
        _ip("-n", namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "route", "add", "default", "via", self.network.address)
        for path in (*self.empty_folders, *self.bound_folders):
            if not Path(path).exists():  # something can be mounted only where something is
                Path(path).mkdir()
                self._made_folders.append(Path(path))
        variables = " ".join(f"export {name}={_quoted(value)};" for name, value in self._environment().items())
        environment = {
            "PATH": os.environ["PATH"],
            "CODE": str(ROOT),
            "PYTHON": sys.base_prefix,
            "BOUND": "\n".join(f"{folder} {path}" for path, folder in self.bound_folders.items()),
            "EMPTY": " ".join(self.empty_folders),
            "USER_ID": str(self.user_id),
            "PROGRAM": f"{variables} {self.program}",
        }
        enter = [
            "ip",
            "netns",
            "exec",
            namespace,
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*enter, "sh", "-c", _MOUNT], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def run(self, command: Sequence[str], timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """A command inside the pod, as ``kubectl exec`` and the kubelet's probes run them."""
        first = self._first_process()
        enter = ["nsenter", f"--target={first.pid}", "--mount", "--net", "--pid", f"--wdns={ROOT}"]
        user = ["setpriv", f"--reuid={self.user_id}", f"--regid={self.user_id}", "--clear-groups", "--no-new-privs"]
        variables = [f"{name}={value}" for name, value in self._environment().items()]
        return subprocess.run(
            [*enter, *user, "env", "-i", *variables, *command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def is_alive(self) -> bool:
        """Whether its program runs."""
        return self._process is not None and self._process.poll() is None

    def wait(self, timeout_s: float) -> int:
        """The exit status of its program, once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def terminate(self, grace_s: float) -> bool:
        """Asks it to end as the kubelet does; whether it did in time. What is left is killed."""
        assert self._process is not None
        self._first_process().send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()
        return True

    def kill(self) -> None:
        """Ends all of it at once, as the loss of a machine would; harmless when it has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._first_process().kill()  # with the first process of its namespace the kernel kills all others
            self._process.wait()
        self._process = None
        while self._made_folders:
            self._made_folders.pop().rmdir()
        _ip("link", "delete", self._link)
        _ip("netns", "delete", self._namespace)

    @property
    def _namespace(self) -> str:
        return f"{self.network.name}-{self.name}"

    @property
    def _link(self) -> str:
        return f"{self.network.name}-{self.number}"  # 15 letters are allowed

    def _environment(self) -> dict[str, str]:
        # As the Dockerfile sets them.
        return {
            "PATH": _PATH,
            "HOME": "/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": f"{ROOT}/.venv/bin/circles-haproxy",
            "TRUSTED_PROXIES": "1",
            "HOSTNAME": self.name,
            **self.environment,
        }

    def _first_process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid).children()[0]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
