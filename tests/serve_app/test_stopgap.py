"""HAProxy, started as Serve does, and killed: somebody listens on."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from serve_app.processes import free_port
from tests.kuberay.pods import need_namespaces
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
class Machine:
    """One on which Ray nodes run, as far as HAProxy knows any."""

    folder: Path
    ports: dict[str, int]
    nodes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, answer: str, *arguments: str, application: str = APPLICATION) -> None:
        """A node and its manager, which starts an HAProxy that answers so."""
        config = self.folder / "haproxy.cfg"
        values = {"folder": self.folder, "answer": answer, "application": application, **self.ports}
        config.write_text(CONFIGURATION.format(**values))
        program = Path(sys.executable).parent / "circles-haproxy"
        command = [sys.executable, "-c", NODE, MANAGER, str(program), "-db", "-f", str(config), "-dR", *arguments]
        environment = {
            **os.environ,
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
            "TEST_MACHINE": str(self.folder),
        }
        self.nodes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))

    def end(self) -> None:
        """Nothing is left."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since
                process.kill()
        for node in self.nodes:
            node.wait()

    def processes(self) -> list[psutil.Process]:
        """All that descends from a node and lives."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("TEST_MACHINE") == str(self.folder)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def haproxies(self) -> list[psutil.Process]:
        """Those of them that are HAProxy."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since
                if process.name() == "haproxy":
                    found.append(process)
        return found

    def answers(self, answer: str) -> bool:
        """Whether the port says this."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.ports['http']}/", timeout=5, trust_env=False).text == answer
        except httpx2.TransportError:
            return False

    def kill_haproxy(self) -> psutil.Process:
        """Kills the only one there is; what listens instead."""
        (haproxy,) = self.haproxies()
        haproxy.kill()
        wait_until(lambda: self.answers("first"))
        (stopgap,) = self.haproxies()
        assert stopgap.pid != haproxy.pid
        return stopgap


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "500.http").write_text("HTTP/1.0 500 x\r\n\r\n")
    machine = Machine(tmp_path, {name: free_port() for name in ("http", "metrics", "stats")})
    machine.start("first")
    try:
        wait_until(lambda: machine.answers("first"))
        yield machine
    finally:
        machine.end()


def test_somebody_listens_when_haproxy_is_killed_and_the_next_one_takes_over(machine: Machine) -> None:
    stopgap = machine.kill_haproxy()
    machine.start("second")
    wait_until(lambda: machine.answers("second"))
    wait_until(lambda: not stopgap.is_running())
    assert len(machine.haproxies()) == 1


def test_what_stands_in_is_replaced_too(machine: Machine) -> None:
    for _ in range(3):
        machine.kill_haproxy()


def test_its_manager_s_end_is_survived(machine: Machine) -> None:
    """Ray ends all of a worker's process group with it."""
    (haproxy,) = machine.haproxies()
    os.killpg(os.getpgid(haproxy.pid), signal.SIGKILL)
    wait_until(lambda: machine.answers("first"))


def test_nothing_outlives_the_node(machine: Machine) -> None:
    machine.kill_haproxy()
    machine.nodes[0].kill()
    wait_until(lambda: machine.haproxies() == [])
    assert not machine.answers("first")


def test_one_that_was_replaced_is_not_missed(machine: Machine) -> None:
    (haproxy,) = machine.haproxies()
    machine.start("second", "-sf", str(haproxy.pid))
    wait_until(lambda: machine.answers("second"))
    wait_until(lambda: len(machine.haproxies()) == 1)
    assert not (machine.folder / "stopgap.pid").exists()


def test_ports_are_given_up_to_one_that_knows_what_there_is_to_serve(machine: Machine) -> None:
    stopgap = machine.kill_haproxy()
    machine.start("nothing yet", application="")
    wait_until(lambda: len(machine.haproxies()) == 2)
    assert all(machine.answers("first") for _ in range(20))
    (knowing_nothing,) = {each.pid for each in machine.haproxies()} - {stopgap.pid}
    machine.start("second", "-sf", str(knowing_nothing))
    wait_until(lambda: machine.answers("second"))
    wait_until(lambda: len(machine.haproxies()) == 1)


def test_there_is_one_stopgap_whatever_dies(machine: Machine) -> None:
    """Also when the next HAProxy dies before it knows what there is to serve: a second one would be without ports."""
    stopgap = machine.kill_haproxy()
    machine.start("nothing yet", application="")
    wait_until(lambda: len(machine.haproxies()) == 2)
    (knowing_nothing,) = [each for each in machine.haproxies() if each.pid != stopgap.pid]
    knowing_nothing.kill()
    machine.start("second")
    wait_until(lambda: machine.answers("second"))
    wait_until(lambda: len(machine.haproxies()) == 1)


def test_haproxy_is_run_also_where_nobody_can_watch_it(machine: Machine) -> None:
    """Below nobody's manager, say: by hand, as the first process of a container."""
    need_namespaces()
    machine.end()
    program = Path(sys.executable).parent / "circles-haproxy"
    command = [str(program), "-db", "-f", str(machine.folder / "haproxy.cfg")]
    code = f"import os, subprocess\nif os.getpid() != 1: raise SystemExit('not 1')\nsubprocess.run({command!r})"
    machine.nodes.append(
        subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", code],
            env={**os.environ, "RAY_SERVE_HAPROXY_BINARY_PATH": str(program), "TEST_MACHINE": str(machine.folder)},
            stdin=subprocess.DEVNULL,
        )
    )
    wait_until(lambda: machine.answers("first"))
