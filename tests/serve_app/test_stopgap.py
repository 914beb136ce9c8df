"""HAProxy, started as Serve does, and killed: somebody listens on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from serve_app.processes import free_port
from tests.running import wait_until

CONFIGURATION = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :{metrics}
    mode http
frontend http_frontend
    bind 127.0.0.1:{http}
    http-request return status 200 content-type text/plain string "{answer}"
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
{application}
listen stats
  bind *:{stats}
  stats enable
"""
APPLICATION = "backend http-circles\n    mode http"

# A Ray node that starts Serve's manager, in a group of its own, which starts HAProxy.
MANAGER = "import signal, subprocess, sys; subprocess.Popen(sys.argv[1:]).wait(); signal.pause()"
NODE = (
    "import signal, subprocess, sys; manager, *command = sys.argv[1:]; "
    "subprocess.Popen([sys.executable, '-c', manager, *command], start_new_session=True).wait(); signal.pause()"
)


@dataclass
class Node:
    """A Ray node as far as HAProxy knows one."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    url: str

    def processes(self) -> list[psutil.Process]:
        """All that descends from it and lives."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("TEST_NODE") == str(self.folder)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def haproxies(self) -> list[psutil.Process]:
        """Those of them that are HAProxy."""
        return [each for each in self.processes() if each.name() == "haproxy"]

    def answer(self) -> str | None:
        """What the port says; None when nobody listens."""
        try:
            return httpx2.get(self.url, timeout=5, trust_env=False).text
        except httpx2.TransportError:
            return None


def start_manager(
    folder: Path, ports: dict[str, int], answer: str, *arguments: str, application: str = APPLICATION
) -> Node:
    config = folder / "haproxy.cfg"
    config.write_text(CONFIGURATION.format(folder=folder, answer=answer, application=application, **ports))
    program = Path(sys.executable).parent / "circles-haproxy"
    command = [sys.executable, "-c", NODE, MANAGER, str(program), "-db", "-f", str(config), "-dR", *arguments]
    environment = {**os.environ, "RAY_SERVE_HAPROXY_BINARY_PATH": str(program), "TEST_NODE": str(folder)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    return Node(folder, process, f"http://127.0.0.1:{ports['http']}/")


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("http", "metrics", "stats")}


@pytest.fixture
def node(tmp_path: Path, ports: dict[str, int]) -> Iterator[Node]:
    (tmp_path / "500.http").write_text("HTTP/1.0 500 x\r\n\r\n")
    node = start_manager(tmp_path, ports, "first")
    try:
        wait_until(lambda: node.answer() == "first")
        yield node
    finally:
        for process in node.processes():
            process.kill()
        node.process.kill()
        node.process.wait()


def test_somebody_listens_when_haproxy_is_killed_and_the_next_one_takes_over(
    node: Node, tmp_path: Path, ports: dict[str, int]
) -> None:
    (haproxy,) = node.haproxies()
    haproxy.kill()
    began = time.monotonic()
    wait_until(lambda: node.answer() == "first", timeout_s=5, period_s=0.01)
    assert time.monotonic() - began < 3  # instead of eight
    (stopgap,) = node.haproxies()
    assert stopgap.pid != haproxy.pid
    following = start_manager(tmp_path, ports, "second")
    try:
        wait_until(lambda: node.answer() == "second", period_s=0.01)
        wait_until(lambda: not stopgap.is_running())
        assert len(node.haproxies()) == 1
    finally:
        following.process.kill()
        following.process.wait()


def test_its_manager_s_end_is_survived(node: Node) -> None:
    """Ray ends all of a worker's process group with it."""
    (haproxy,) = node.haproxies()
    os.killpg(os.getpgid(haproxy.pid), signal.SIGKILL)
    wait_until(lambda: node.answer() == "first", timeout_s=5, period_s=0.01)


def test_nothing_outlives_the_node(node: Node) -> None:
    (haproxy,) = node.haproxies()
    haproxy.kill()
    wait_until(lambda: node.answer() == "first", timeout_s=5)
    node.process.kill()
    node.process.wait()
    wait_until(lambda: node.haproxies() == [])
    assert node.answer() is None


def test_one_that_was_replaced_is_not_missed(node: Node, tmp_path: Path, ports: dict[str, int]) -> None:
    (haproxy,) = node.haproxies()
    following = start_manager(tmp_path, ports, "second", "-sf", str(haproxy.pid))
    try:
        wait_until(lambda: node.answer() == "second")
        wait_until(lambda: not haproxy.is_running() or haproxy.status() == psutil.STATUS_ZOMBIE)
        wait_until(lambda: len(node.haproxies()) == 1)
        assert not (tmp_path / "stopgap.pid").exists()
    finally:
        following.process.kill()
        following.process.wait()


def test_ports_are_given_up_to_one_that_knows_what_there_is_to_serve(
    node: Node, tmp_path: Path, ports: dict[str, int]
) -> None:
    (haproxy,) = node.haproxies()
    haproxy.kill()
    wait_until(lambda: node.answer() == "first", timeout_s=5)
    (stopgap,) = node.haproxies()
    empty = start_manager(tmp_path, ports, "nothing yet", application="")
    try:
        wait_until(lambda: len(node.haproxies()) == 2)
        assert [node.answer() for _ in range(20)] == ["first"] * 20
        (knowing_nothing,) = {each.pid for each in node.haproxies()} - {stopgap.pid}
        following = start_manager(tmp_path, ports, "second", "-sf", str(knowing_nothing))
        try:
            wait_until(lambda: node.answer() == "second")
            wait_until(lambda: len(node.haproxies()) == 1)
        finally:
            following.process.kill()
            following.process.wait()
    finally:
        empty.process.kill()
        empty.process.wait()
