"""The words of the justfile and the commands underneath, in a copy of this checkout."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest

from serve_app.processes import MARK, free_port

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = {
    "setup": {"install-deps", "check-deps", "lock", "proto", "api-key"},
    "run": {"dev", "backend", "model-server", "migrate", "storage", "clean"},
    "watch": {"status", "health", "logs", "endpoints"},
    "check": {"test", "pytest", "lint", "eval", "fuzz", "chaos", "overload", "soak", "sbom", "bench"},
    "train": {"train"},
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the application needs of this checkout."""
    for name in ("circles", "deployments", "serve_app"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("serve_config.yaml", "serve.env"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serve_app", *arguments]


def environment() -> dict[str, str]:
    ports = {name: str(free_port()) for name in ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")}
    return {**os.environ, **ports, "PYTHONPATH": "", "COLUMNS": "200"}


def run(checkout: Path, *arguments: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=checkout, env=variables, capture_output=True, text=True, timeout=100, check=False
    )


def processes_of(checkout: Path) -> list[psutil.Process]:
    """All processes that descend from a start in this checkout."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"{checkout}:"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_words_are_listed_in_groups() -> None:
    just = Path(sys.executable).parent / "just"
    for group, words in WORDS.items():
        listed = subprocess.run(
            [just, "--justfile", ROOT / "justfile", "--list", "--group", group],
            capture_output=True,
            text=True,
            check=True,
        )
        assert words == {line.split()[0] for line in listed.stdout.splitlines()[2:] if line.startswith("    ")}


@pytest.mark.serve
@pytest.mark.control
def test_background_start_is_watched_and_ended(checkout: Path) -> None:
    port, variables = free_port(), environment()
    url = f"http://127.0.0.1:{port}"
    ports = ("--port", str(port), "--grpc-port", str(free_port()))
    started = run(checkout, "start", "--background", *ports, variables=variables)
    try:
        assert started.returncode == 0, started.stderr
        assert f"ready at {url}" in started.stdout
        assert httpx2.get(f"{url}/health").json()["mode"] == "dummy"
        assert (checkout / "data" / "db.sqlite3").is_file()
        for word in ("status", "endpoints"):
            assert url in run(checkout, word, variables=variables).stdout
        assert "Ingress" in run(checkout, "status", variables=variables).stdout
        health = run(checkout, "health", "--url", url, variables=variables)
        assert (health.returncode, health.stdout.count("200")) == (0, 2)
        logs = run(checkout, "logs", variables=variables).stdout
        assert "Submitted deploy config" in logs
        assert re.search(r"GET /\S* 200", logs)
        again = run(checkout, "start", "--background", "--port", str(free_port()), variables=variables)
        assert again.returncode == 1
        assert "runs already" in again.stderr
    finally:
        stopped = run(checkout, "stop", variables=variables)
    assert stopped.returncode == 0
    assert processes_of(checkout) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert run(checkout, "status", variables=variables).returncode == 1
    assert "ended 0 processes" in run(checkout, "stop", variables=variables).stdout


@pytest.mark.serve
@pytest.mark.control
def test_ctrl_c_ends_a_foreground_start(checkout: Path) -> None:
    port = free_port()
    with subprocess.Popen(
        command("start", "--port", str(port), "--grpc-port", str(free_port())),
        cwd=checkout,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any("Ctrl-C stops it" in line for line in iter(process.stdout.readline, ""))
            assert httpx2.get(f"http://127.0.0.1:{port}/ready").status_code == 200
            assert processes_of(checkout) != []
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "stopping" in output
    assert processes_of(checkout) == []


def test_model_server_is_started_watched_and_ended(checkout: Path) -> None:
    ports = [free_port(), free_port()]
    arguments = ("model-server", "--background", "--port", str(ports[0]), "--grpc-port", str(ports[1]))
    started = run(checkout, *arguments, variables=environment())
    try:
        assert started.returncode == 0, started.stderr
        assert f"ready at http://127.0.0.1:{ports[0]} (gRPC at 127.0.0.1:{ports[1]})" in started.stdout
        assert httpx2.get(f"http://127.0.0.1:{ports[0]}/docs").status_code == 200
        others = ("--port", str(free_port()), "--grpc-port", str(free_port()))
        again = run(checkout, "model-server", "--background", *others, variables=environment())
        assert again.returncode == 1
        assert "runs already" in again.stderr
    finally:
        stopped = run(checkout, "stop", variables=environment())
    assert "ended 2 processes" in stopped.stdout
    assert processes_of(checkout) == []


def test_model_server_without_its_weights_does_not_start(checkout: Path) -> None:
    (checkout / "circles" / "weights" / "heatmap.onnx").write_bytes(b"damaged")
    arguments = ("model-server", "--background", "--port", str(free_port()), "--grpc-port", str(free_port()))
    started = run(checkout, *arguments, variables=environment())
    assert started.returncode == 1
    assert "checksum" in started.stderr
    assert processes_of(checkout) == []


def test_taken_port_is_named_with_its_holder(checkout: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        started = run(checkout, "start", "--background", "--port", str(port), variables=environment())
    assert started.returncode == 1
    assert f"port {port} is taken by process {os.getpid()}" in started.stderr
    assert processes_of(checkout) == []


def test_settings_that_cannot_work_are_refused_before_anything_starts(checkout: Path) -> None:
    variables = {**environment(), "DETECTOR": "owl"}
    started = run(checkout, "start", "--real", "--background", "--port", str(free_port()), variables=variables)
    assert started.returncode == 1
    assert "detector" in started.stderr
    assert "owl" in started.stderr
    assert not (checkout / "logs").exists()
    assert processes_of(checkout) == []
