"""A real Serve for tests: a cluster of its own, on free ports, beside whatever else runs."""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from serve_app.local import LocalService, Ports
from serve_app.processes import LocalServiceError, free_ports


@dataclass
class RunningServe:
    """The application under Serve."""

    url: str
    grpc_address: str
    folder: Path
    environment: dict[str, str]
    local: LocalService

    def client(self) -> httpx2.Client:
        """A client of this service."""
        return httpx2.Client(base_url=self.url, timeout=60)

    def deploy(self, config: dict[str, Any]) -> None:
        """``serve deploy`` of a configuration; returns when Serve has taken it."""
        path = self.folder / "deployed.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        serve = str(Path(sys.executable).parent / "serve")
        # Ray asks for the token of its local clusters, which `serve` only shows when told to.
        environment = {**os.environ, "RAY_AUTH_MODE": "token"}
        command = [serve, "deploy", "-a", str(self.local.running().dashboard_url), str(path)]
        subprocess.run(command, env=environment, check=True, capture_output=True)

    def metrics(self) -> str:
        """What Prometheus reads of Ray, Serve and the application."""
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        address = f"{self.local.running().dashboard_url}/api/prometheus/sd"
        groups = httpx2.get(address, headers={"Authorization": f"Bearer {token}"}).raise_for_status().json()
        targets = [target for group in groups for target in group["targets"]]
        return "".join(httpx2.get(f"http://{target}/metrics", timeout=30).text for target in targets)

    def replica_processes(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas, by the title that Ray gives them."""
        title = f"ray::ServeReplica:circles:{deployment}"
        return [process for process, command in self.local.commands() if title in " ".join(command)]

    def haproxy_processes(self) -> list[psutil.Process]:
        """HAProxy's, of which a reload leaves two for a moment."""
        return [process for process, command in self.local.commands() if Path(command[0]).name == "haproxy"]

    def replica_pids(self) -> dict[str, set[int]]:
        """The process ids of each deployment's replicas."""
        names = ("Ingress", "Detector")
        return {name: {process.pid for process in self.replica_processes(name)} for name in names}


@contextlib.contextmanager
def running_serve(folder: Path, **settings: str) -> Iterator[RunningServe]:
    """The application under Serve on the fast path, with its data in this folder; nothing of it is left afterwards.

    Args:
        settings: Environment variables of the application and of Serve.
    """
    service = started_serve(folder, **settings)
    try:
        yield service
    finally:
        service.local.stop()
        assert not service.local.processes()


def started_serve(folder: Path, **settings: str) -> RunningServe:
    """As ``running_serve``, to be ended by the caller."""
    local = LocalService(folder / "run", name=f"tests-{uuid.uuid4().hex}")
    environment = {
        "DATABASE_URL": f"sqlite:///{folder}/data/db.sqlite3",
        "STORAGE_URL": f"file:{folder}/data/images",
        "MODE": "real",
        "DETECTOR_NUM_CPUS": "0.4",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        **settings,
    }
    try:
        ports = _started(local, environment)
    except LocalServiceError as error:
        # A port that was free when it was picked was somebody's when HAProxy, the last to start, came to it.
        if "Address already in use" not in str(error):
            raise
        ports = _started(local, environment)
    return RunningServe(f"http://127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}", folder, environment, local)


def _started(local: LocalService, environment: dict[str, str]) -> Ports:
    ports = Ports(*free_ports(4))
    local.start(environment, ports)
    return ports
