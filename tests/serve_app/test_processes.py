"""Processes of this machine: how they are asked, and what all of Ray's start with."""

import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.processes import free_port, free_ports, open_directly
from tests.fakes import FixedDetector, GatedDetector
from tests.running import running_api, settings_in


def test_a_proxy_of_the_environment_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with (
        running_api(settings_in(tmp_path), GatedDetector(FixedDetector())) as api,
        open_directly(f"{api.url}/health", timeout=10) as response,
    ):
        assert response.status == 200


def test_rays_processes_do_not_build_a_parser_that_nobody_needs() -> None:
    """With jsonschema's optional parts installed each of them does, for a second, and there are a dozen."""
    check = "import sys, ray; sys.exit('rfc3987_syntax' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_no_port_is_given_twice() -> None:
    blocks = [free_ports(20) for _ in range(5)]
    ports = [port for block in blocks for port in block] + [free_port() for _ in range(500)]
    assert len(set(ports)) == 600
