"""The application on this machine: started with the fast path, watched until it is ready, ended without a trace.

Every process that descends from a start carries a mark in its environment, so that stopping finds all of them (also
HAProxy, which outlives an interrupted `serve run`) and none that somebody else started.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil
import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent.parent
_MARK = "CIRCLES_STARTED_BY"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_POLL_PERIOD_S = 0.2


class LocalServiceError(Exception):
    """The application cannot be started, or is not running; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that must be free: HTTP, and HAProxy's statistics and metrics."""

    http: int = 8000
    haproxy_stats: int = 8404
    haproxy_metrics: int = 9101

    @classmethod
    def from_environment(cls, http: int) -> Self:
        """HAProxy's ports as Serve's variables name them, else the defaults."""
        names = {"haproxy_stats": "RAY_SERVE_HAPROXY_STATS_PORT", "haproxy_metrics": "RAY_SERVE_HAPROXY_METRICS_PORT"}
        return cls(http, **{field: int(os.environ[name]) for field, name in names.items() if os.environ.get(name)})


@dataclass(frozen=True, slots=True)
class RunningService:
    """A started application, as written down beside its log."""

    pid: int
    url: str
    dashboard_url: str | None
    mode: str


class LocalService:
    """One application started from this checkout, its logs and its state in a folder."""

    def __init__(self, run_folder: Path, name: str = "service") -> None:
        """
        Args:
            run_folder: Where its log and state are written.
            name: Part of the mark of its processes, to tell several from each other.
        """
        self._run_folder = run_folder
        self._mark = f"{ROOT}:{name}"
        self.log_path = run_folder / "serve.log"
        self.config_path = ROOT / "serve_config.yaml"
        self._state_path = run_folder / "service.json"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str], ports: Ports = Ports(), working_folder: Path = ROOT) -> None:
        """Starts the application in the background and waits until it is ready.

        Args:
            environment: Settings and Serve's variables beside, and above, those of ``serve.env`` and this process.
            working_folder: Relative paths in the settings start here.

        Raises:
            LocalServiceError: It runs already, a port is taken, or it does not become ready; nothing is left running.
        """
        if self.processes():
            raise LocalServiceError(f"it runs already (see {self.log_path}); `just clean` ends it")
        for port in (ports.http, ports.haproxy_stats, ports.haproxy_metrics):
            _check_port_is_free(port)
        self._run_folder.mkdir(parents=True, exist_ok=True)
        child_environment = {
            **{key: value for key, value in dotenv_values(ROOT / "serve.env").items() if value is not None},
            **os.environ,
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
            # Behind HAProxy stands a Python proxy for the time without ingress replicas. It shares its port with
            # whoever has it already (SO_REUSEPORT), so with the fixed default two services would answer for each other.
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            **environment,
            _MARK: self._mark,
        }
        # A cluster of its own, also beside a Ray that runs already.
        self.config_path = self._config(ports)
        command = [_tool("serve"), "run", "--address", "local", "--app-dir", str(ROOT), str(self.config_path)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                cwd=working_folder,
                env=child_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on, once
            )
        url = f"http://127.0.0.1:{ports.http}"
        try:
            self._wait_until_ready(self._process, url)
            mode = child_environment.get("MODE", "real")
            state = RunningService(self._process.pid, url, self._dashboard_url(), mode)
            self._state_path.write_text(json.dumps(asdict(state)), encoding="utf-8")
        except BaseException:
            self.stop()
            raise

    @property
    def has_started(self) -> bool:
        """Whether it was this object that started something, rather than another one before."""
        return self._process is not None

    def wait(self) -> int:
        """Waits until the application that this object started ends; its exit status."""
        if self._process is None:
            raise LocalServiceError("this object started nothing")
        return self._process.wait()

    def running(self) -> RunningService:
        """What was started and still runs.

        Raises:
            LocalServiceError: Nothing does.
        """
        if self._state_path.is_file() and self.processes():
            return RunningService(**json.loads(self._state_path.read_text(encoding="utf-8")))
        raise LocalServiceError("the application is not running; `just backend -r -b` starts it")

    def processes(self) -> list[psutil.Process]:
        """All processes that descend from a start, oldest first."""
        return _marked_processes(lambda mark: mark == self._mark)

    def stop(self) -> int:
        """Ends all processes of the application, gracefully first; how many there were."""
        count = stop_processes(self.processes)
        if self._process is not None:
            self._process.wait()  # it has ended; this takes its exit status, so that no zombie stays
        self._state_path.unlink(missing_ok=True)
        return count

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
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
                applications: dict[str, dict[str, object]] = json.load(response)["applications"]
        except (OSError, ValueError, KeyError):
            return {}
        return applications.get("circles", {})

    def _config(self, ports: Ports) -> Path:
        """``serve_config.yaml`` itself, or a copy with another port."""
        path = ROOT / "serve_config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if config["http_options"]["port"] == ports.http:
            return path
        config["http_options"]["port"] = ports.http
        copy = self._run_folder / "serve_config.yaml"
        copy.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return copy

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        next_status = time.monotonic()
        while not _is_ready(url):
            if process.poll() is not None:
                raise LocalServiceError(f"`serve run` ended with {process.returncode}:\n{self._log_end()}")
            if time.monotonic() >= next_status:
                status = self.application_status()
                if status.get("status") == "DEPLOY_FAILED":
                    raise LocalServiceError(f"the application cannot be deployed:\n{_reasons(status)}")
                next_status = time.monotonic() + 2.0
            if time.monotonic() > deadline:
                raise LocalServiceError(f"not ready after {_START_TIMEOUT_S:g} s:\n{self._log_end()}")
            time.sleep(_POLL_PERIOD_S)

    def _dashboard_url(self) -> str | None:
        """Where Ray says, in the log, that its dashboard is: it takes another port when 8265 is taken."""
        if not self.log_path.is_file():
            return None
        found = re.search(r"View the dashboard at \S*?(http://[\d.]+:\d+)", self.log_path.read_text(errors="replace"))
        return found.group(1) if found else None

    def _log_end(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-20:])


def free_port() -> int:
    """A port of the loopback address that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop_all() -> int:
    """Ends whatever was started from this checkout, under any name; how many processes that were."""
    return stop_processes(lambda: _marked_processes(lambda mark: mark.startswith(f"{ROOT}:")))


def stop_processes(find: Callable[[], list[psutil.Process]]) -> int:
    """Interrupts the oldest process and lets it clean up, then ends what is left; how many there were."""
    seen: set[int] = set()
    for to_all, signal_number, patience_s in (
        (False, signal.SIGINT, _STOP_TIMEOUT_S),
        (True, signal.SIGTERM, 5.0),
        (True, signal.SIGKILL, 5.0),
    ):
        processes = find()
        seen.update(process.pid for process in processes)
        if not processes:
            break
        for process in processes if to_all else processes[:1]:
            try:
                process.send_signal(signal_number)
            except psutil.NoSuchProcess:
                continue
        waited_for = processes if to_all else processes[:1]
        psutil.wait_procs(waited_for, timeout=patience_s)
    return len(seen)


def _marked_processes(is_ours: Callable[[str], bool]) -> list[psutil.Process]:
    return sorted(_iterate_marked(is_ours), key=lambda process: process.create_time())


def _iterate_marked(is_ours: Callable[[str], bool]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if is_ours(process.environ().get(_MARK, "")) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone meanwhile, or another user's and so not ours


def _check_port_is_free(port: int) -> None:
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            raise LocalServiceError(f"port {port} is taken by {_describe(connection.pid)}")


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()) or process.name()
        is_ours = process.environ().get(_MARK, "").startswith(f"{ROOT}:")
    except psutil.Error:
        return f"process {pid}"
    hint = " (started from this checkout: `just clean` ends it)" if is_ours else ""
    return f"process {pid}: {command[:200]}{hint}"


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=10) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


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
