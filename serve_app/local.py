"""The application and the model server on this machine, as the words of the justfile start them."""

import contextlib
import json
import os
import re
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import yaml
from dotenv import dotenv_values

from serve_app.processes import (
    ROOT,
    LocalProcess,
    LocalServiceError,
    free_port,
    free_ports,
    open_directly,
    take_port,
)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that must be free: HTTP, gRPC, and HAProxy's statistics and metrics."""

    http: int = 8000
    grpc: int = 9000
    haproxy_stats: int = 8404
    haproxy_metrics: int = 9101

    @classmethod
    def from_environment(cls, http: int, grpc: int) -> Self:
        """HAProxy's ports as Serve's variables name them, else the defaults."""
        names = {"haproxy_stats": "RAY_SERVE_HAPROXY_STATS_PORT", "haproxy_metrics": "RAY_SERVE_HAPROXY_METRICS_PORT"}
        return cls(
            http, grpc, **{field: int(os.environ[name]) for field, name in names.items() if os.environ.get(name)}
        )


@dataclass(frozen=True, slots=True)
class RunningService:
    """A started application, as written down beside its log."""

    pid: int
    url: str
    grpc_address: str
    dashboard_url: str | None
    mode: str
    model_server_url: str | None


class LocalService(LocalProcess):
    """One application under Serve on the fast path, its logs and its state in a folder."""

    def __init__(self, run_folder: Path, name: str = "service") -> None:
        """
        Args:
            run_folder: Where its log and state are written.
            name: Part of the mark of its processes, to tell several from each other.
        """
        super().__init__(run_folder / "serve.log", name)
        self._run_folder = run_folder
        self.config_path = ROOT / "serve_config.yaml"
        self._state_path = run_folder / "service.json"

    def start(self, environment: Mapping[str, str], ports: Ports = Ports(), working_folder: Path = ROOT) -> None:
        """Starts the application in the background and waits until it is ready.

        Args:
            environment: Settings and Serve's variables beside, and above, those of ``serve.env`` and this process.
            working_folder: Relative paths in the settings start here.

        Raises:
            LocalServiceError: It runs already, a port is taken, or it does not become ready; nothing is left running.
        """
        self.check_is_absent()
        for port in (ports.http, ports.grpc, ports.haproxy_stats, ports.haproxy_metrics):
            take_port(port)
        self._run_folder.mkdir(parents=True, exist_ok=True)
        replicas = int(environment.get("INGRESS_REPLICAS") or os.environ.get("INGRESS_REPLICAS") or 1)
        replica_ports = free_ports(3 * replicas + 8)
        serving = {key: value for key, value in dotenv_values(ROOT / "serve.env").items() if value is not None}
        has_haproxy = {**serving, **os.environ, **environment}.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
        variables = {
            **serving,
            "TRUSTED_PROXIES": "1" if has_haproxy else "0",  # the HAProxy named below
            **os.environ,
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
            "RAY_SERVE_HAPROXY_BINARY_PATH": _tool("circles-haproxy"),
            # Behind HAProxy stands a Python proxy for the time without ingress replicas. It shares its port with
            # whoever has it already (SO_REUSEPORT), so with the fixed default two services would answer for each other.
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            # So do the replicas' gRPC servers, whatever Serve asks of them.
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(replica_ports.start),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(replica_ports.stop),
            **environment,
        }
        self.config_path = self._config(ports)
        # A cluster of its own, also beside a Ray that runs already.
        command = [_tool("serve"), "run", "--address", "local", "--app-dir", str(ROOT), str(self.config_path)]
        self.launch(command, variables, working_folder)
        url = f"http://127.0.0.1:{ports.http}"
        try:
            self.wait_until_ready(f"{url}/ready", self._failure)
            mode = variables.get("MODE", "real")
            state = RunningService(
                pid=self.pid,
                url=url,
                grpc_address=f"127.0.0.1:{ports.grpc}",
                dashboard_url=self._dashboard_url(),
                mode=mode,
                model_server_url=(mode == "real" and variables.get("MODEL_SERVER_URL")) or None,
            )
            self._state_path.write_text(json.dumps(asdict(state)), encoding="utf-8")
        except BaseException:
            self.stop()
            raise

    def running(self) -> RunningService:
        """What was started and still runs.

        Raises:
            LocalServiceError: Nothing does.
        """
        if self._state_path.is_file() and self.processes():
            return RunningService(**json.loads(self._state_path.read_text(encoding="utf-8")))
        raise LocalServiceError("the application is not running; `just backend -r -b` starts it")

    @property
    def ray_address(self) -> str:
        """Host and port by which its Ray is joined: it need not be the only one of this machine."""
        raylet = next(command for _, command in self.commands() if Path(command[0]).name == "raylet")
        option = "--gcs-address="
        return next(word.removeprefix(option) for word in raylet if word.startswith(option))

    def stop(self) -> int:
        count = super().stop()
        self._state_path.unlink(missing_ok=True)
        return count

    def log_paths(self) -> list[Path]:
        """What its start says, and, while it runs, what its replicas do, those that wrote last at the end."""
        written_at: dict[Path, float] = {}
        for _, command in self.commands():
            for folder in re.findall(r"--log_dir=(\S+)", " ".join(command)):
                for path in Path(folder, "serve").glob("replica_circles_*.log"):
                    with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                        written_at[path] = path.stat().st_mtime
        return [self.log_path, *sorted(written_at, key=lambda path: written_at[path])]

    def application_status(self) -> dict[str, object]:
        """What Serve's controller says of the application: status, message, deployments; empty when it says nothing."""
        dashboard_url = self._dashboard_url()
        if dashboard_url is None:
            return {}
        token_path = Path.home() / ".ray" / "auth_token"
        token = token_path.read_text(encoding="utf-8").strip() if token_path.is_file() else ""
        request = urllib.request.Request(  # noqa: S310 - the address is our own log's
            f"{dashboard_url}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with open_directly(request, timeout=5) as response:
                applications: dict[str, dict[str, object]] = json.load(response)["applications"]
        except (OSError, ValueError, KeyError):
            return {}
        return applications.get("circles", {})

    def _config(self, ports: Ports) -> Path:
        """``serve_config.yaml`` itself, or a copy with other ports."""
        path = ROOT / "serve_config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if (config["http_options"]["port"], config["grpc_options"]["port"]) == (ports.http, ports.grpc):
            return path
        config["http_options"]["port"] = ports.http
        config["grpc_options"]["port"] = ports.grpc
        copy = self._run_folder / "serve_config.yaml"
        copy.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return copy

    def _failure(self) -> str | None:
        status = self.application_status()
        if status.get("status") == "DEPLOY_FAILED":
            return f"the application cannot be deployed:\n{_reasons(status)}"
        return None

    def _dashboard_url(self) -> str | None:
        """Where Ray says, in the log, that its dashboard is: it takes another port when 8265 is taken."""
        if not self.log_path.is_file():
            return None
        found = re.search(r"View the dashboard at \S*?(http://[\d.]+:\d+)", self.log_path.read_text(errors="replace"))
        return found.group(1) if found else None


class LocalModelServer(LocalProcess):
    """One model server, its log in a folder."""

    def __init__(self, run_folder: Path, name: str = "model-server") -> None:
        """As ``LocalService``."""
        super().__init__(run_folder / "model-server.log", name)

    def start(self, environment: Mapping[str, str], http_port: int, grpc_port: int) -> str:
        """Starts it in the background and waits until it is ready; its address.

        Args:
            environment: Settings beside, and above, those of this process.

        Raises:
            LocalServiceError: It runs already, a port is taken, or it does not become ready; nothing is left running.
        """
        for port in (http_port, grpc_port):
            take_port(port)
        ports = [f"--http_port={http_port}", f"--grpc_port={grpc_port}"]
        self.launch([sys.executable, "-m", "deployments.kserve_model", *ports], {**os.environ, **environment}, ROOT)
        url = f"http://127.0.0.1:{http_port}"
        try:
            self.wait_until_ready(f"{url}/v2/health/ready")
        except BaseException:
            self.stop()
            raise
        return url


def _reasons(status: dict[str, object]) -> str:
    """The application's message and its deployments', each a few lines from the end, where a traceback's point is."""
    deployments = status.get("deployments")
    messages = [str(status.get("message", ""))]
    if isinstance(deployments, dict):
        messages += [str(deployment.get("message", "")) for deployment in deployments.values()]
    return "\n".join("\n".join(message.strip().splitlines()[-6:]) for message in messages if message)


def _tool(name: str) -> str:
    """A command of the Python environment that this runs in."""
    return str(Path(sys.executable).parent / name)
