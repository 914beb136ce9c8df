"""Processes of this machine: how they are asked, and what all of Ray's start with."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serve_app import processes
from serve_app.processes import MARK, LocalProcess, free_port, free_ports, open_directly, take_port
from tests.fakes import FixedDetector, GatedDetector
from tests.running import running_api, settings_in, wait_until


def test_a_proxy_of_the_environment_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with (
        running_api(settings_in(tmp_path), GatedDetector(FixedDetector())) as api,
        open_directly(f"{api.url}/health", timeout=10) as response,
    ):
        assert response.status == 200


def test_port_that_is_taken_is_given_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(processes, "_given_ports", set())
    take_port(port)
    monkeypatch.setattr(processes, "_PORTS", range(port - 50, port + 51))  # all of them are tried
    assert port not in {free_port() for _ in range(70)}


def test_rays_processes_do_not_build_a_parser_that_nobody_needs() -> None:
    """With jsonschema's optional parts installed each of them does, for a second, and there are a dozen."""
    check = "import sys, ray; sys.exit('rfc3987_syntax' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_processes_that_overwrite_their_environment_are_found(tmp_path: Path) -> None:
    """A title longer than the command line goes over the environment's beginning, with zeros behind it."""
    program = """
import ctypes, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would be missed just before the wait
environ = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
ctypes.memset(environ[0], 0, len("FIRST=1234567890"))
open("is_overwritten", "x").close()
signal.pause()
"""
    local = LocalProcess(tmp_path / "log", f"titled-{tmp_path.name}")
    local.launch([sys.executable, "-c", program], {"FIRST": "1234567890", **os.environ}, tmp_path)
    try:
        wait_until((tmp_path / "is_overwritten").exists)
        assert MARK not in psutil.Process(local.pid).environ()
        assert [process.pid for process in local.processes()] == [local.pid]
        assert local.stop() == 1
        assert not psutil.pid_exists(local.pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(local.pid).kill()


def test_a_mark_that_is_no_text_hides_no_other_process(tmp_path: Path) -> None:
    """Anybody's process may carry one, and so may ours, where the checkout's path is none."""
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    environment = {**os.environb, MARK.encode(): b"\xff"}
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, env=environment) as other:
        assert LocalProcess(tmp_path / "log", "another").processes() == []
        other.communicate()


def test_no_port_is_given_twice() -> None:
    blocks = [free_ports(20) for _ in range(5)]
    ports = [port for block in blocks for port in block] + [free_port() for _ in range(500)]
    assert len(set(ports)) == 600
