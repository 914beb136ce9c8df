"""The ways to serve the detector that are compared: how each is started, asked, watched and ended."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import yaml

from circles.detectors.guarded import ALLOCATOR_VARIABLES
from evaluation.benchmark.environments import environment_with
from evaluation.benchmark.load import Target
from serve_app.local import LocalService, Ports
from serve_app.processes import ROOT, LocalProcess, LocalServiceError, free_port, free_ports

CORES = os.cpu_count() or 1

_REPLICAS_TIMEOUT_S = 120.0
_POLL_PERIOD_S = 0.5
_PROGRAMS = "evaluation.benchmark.programs"
_LITSERVE = ["litserve==0.2.19", "python-multipart>=0.0.34"]
_BENTOML = ["bentoml==1.4.40"]


class Contestant(Protocol):
    """A way to serve the detector, with one replica or worker for every core where it can have several."""

    name: str
    """Its key in reports."""
    title: str
    """What it is, for people."""
    has_our_detector: bool
    """Whether it answers what the bare detector does."""

    def prepare(self) -> None:
        """Makes what its start needs.

        Raises:
            NotInstallableError: That is not to be had here.
        """

    def start(self, folder: Path) -> Target:
        """Starts it with its data and logs in a fresh folder, and waits until it answers.

        Raises:
            LocalServiceError: It does not; nothing is left running.
        """

    def processes(self) -> list[psutil.Process]:
        """All that it consists of."""

    def stop(self) -> None:
        """Ends all of it."""


class OtherApplication(LocalService):
    """Serve as this application is run by it, with another one."""

    def __init__(self, run_folder: Path, name: str, import_path: str) -> None:
        """
        Args:
            import_path: Of the function that builds it from ``Settings``.
        """
        super().__init__(run_folder, name)
        self._import_path = import_path

    def _config(self, ports: Ports) -> Path:
        config = yaml.safe_load(super()._config(ports).read_text(encoding="utf-8"))
        (application,) = config["applications"]
        application["import_path"] = self._import_path
        del application["deployments"]  # this application's
        path = self._run_folder / "other_config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path


class Served:
    """This application under Ray Serve, which keeps bytes and rows durably, or another one in its place."""

    has_our_detector = True

    def __init__(
        self,
        name: str,
        title: str,
        variables: Mapping[str, str],
        *,
        path: str = "/images/",
        import_path: str | None = None,
    ) -> None:
        """
        Args:
            variables: Of Serve and the application, beside ``serve.env``.
            path: Where it takes pictures.
            import_path: Of another application.
        """
        self.name, self.title = name, title
        self._variables = variables
        self._path = path
        self._import_path = import_path
        self._local: LocalService | None = None

    def prepare(self) -> None:
        """Nothing is needed but this environment."""

    def start(self, folder: Path) -> Target:
        run_folder, name = folder / "run", f"benchmark-{self.name}-{os.getpid()}"
        if self._import_path is None:
            self._local = LocalService(run_folder, name)
        else:
            self._local = OtherApplication(run_folder, name, self._import_path)
        environment = {
            "DATABASE_URL": f"sqlite:///{folder}/data/db.sqlite3",
            "STORAGE_URL": f"file:{folder}/data/images",
            "MODE": "real",
            "DETECTOR_MIN_REPLICAS": str(CORES),
            "DETECTOR_MAX_REPLICAS": str(CORES),
            # A request is never answered for later: it would count as failed.
            "DETECTION_TIMEOUT_S": "60",
            "MAX_IN_FLIGHT": str(64 * CORES),
            **self._variables,
        }
        ports = Ports(*free_ports(4))
        self._local.start(environment, ports)
        try:
            # Ready is when uploads are taken; here, every replica is to be there.
            wait_until_running(self._local)
        except BaseException:
            self._local.stop()
            raise
        return Target(f"http://127.0.0.1:{ports.http}{self._path}")

    def processes(self) -> list[psutil.Process]:
        return [] if self._local is None else self._local.processes()

    def stop(self) -> None:
        if self._local is not None:
            self._local.stop()


def wait_until_running(local: LocalService, timeout_s: float = _REPLICAS_TIMEOUT_S) -> None:
    """Waits until all replicas that are wanted run.

    Raises:
        LocalServiceError: They do not in time.
    """
    deadline = time.monotonic() + timeout_s
    while (status := local.application_status().get("status")) != "RUNNING":
        if time.monotonic() > deadline:
            raise LocalServiceError(f"after {timeout_s:g} s the application is {status}, not RUNNING")
        time.sleep(_POLL_PERIOD_S)


@dataclass(frozen=True, slots=True)
class Program:
    """One program of a contestant."""

    command: Callable[[int], list[str]]
    """For a port."""
    ready_path: str = "/ready"
    environment: Mapping[str, str] = field(default_factory=dict)
    address_variable: str = ""
    """Environment variable by which the programs that follow are told its address."""


class Programs:
    """One program or several, each a process with its children."""

    def __init__(
        self,
        name: str,
        title: str,
        path: str,
        programs: Callable[[], list[Program]],
        *,
        has_our_detector: bool = True,
    ) -> None:
        """
        Args:
            path: Where the last program, which clients ask, takes pictures.
            programs: In the order of their start.
        """
        self.name, self.title, self.has_our_detector = name, title, has_our_detector
        self._path = path
        self._make_programs = programs
        self._programs: list[Program] = []
        self._local: list[LocalProcess] = []

    def prepare(self) -> None:
        self._programs = self._make_programs()

    def start(self, folder: Path) -> Target:
        # As this application does for its own detectors.
        environment = {**ALLOCATOR_VARIABLES, **os.environ, "BACKEND_FOLDER": str(folder / "data")}
        url = ""
        self._local = []
        try:
            for index, program in enumerate(self._programs):
                port = free_port()
                local = LocalProcess(folder / f"{index}.log", f"benchmark-{self.name}-{index}-{os.getpid()}")
                self._local.append(local)
                local.launch(program.command(port), {**environment, **program.environment}, ROOT)
                url = f"http://127.0.0.1:{port}"
                local.wait_until_ready(f"{url}{program.ready_path}")
                if program.address_variable:
                    environment[program.address_variable] = url
        except BaseException:
            self.stop()
            raise
        return Target(f"{url}{self._path}")

    def processes(self) -> list[psutil.Process]:
        return [process for local in self._local for process in local.processes()]

    def stop(self) -> None:
        for local in reversed(self._local):
            local.stop()


def _uvicorn(application: str, workers: int = 1) -> Program:
    def command(port: int) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers), "--no-access-log"]
        return [sys.executable, "-m", "uvicorn", "--factory", f"{_PROGRAMS}.{application}:create_app", *options]

    return Program(command)


def _our_model_server() -> Program:
    """KServe's, with the detector computing on all cores, as its one process may."""

    def command(port: int) -> list[str]:
        ports = [f"--http_port={port}", f"--grpc_port={free_port()}"]
        return [sys.executable, "-m", "deployments.kserve_model", *ports]

    threads = {"DETECTOR_THREADS": str(CORES)}
    return Program(command, "/v2/health/ready", threads, address_variable="MODEL_SERVER_URL")


def _owlvit_model_server() -> Program:
    def command(port: int) -> list[str]:
        return [sys.executable, "-m", f"{_PROGRAMS}.owlvit_server", f"--http_port={port}"]

    return Program(command, "/v2/health/ready", address_variable="MODEL_SERVER_URL")


def _litserve() -> list[Program]:
    python = environment_with("litserve", _LITSERVE) / "python"
    return [Program(lambda port: [str(python), "-m", f"{_PROGRAMS}.lit", "--port", str(port)], "/health")]


def _bentoml() -> list[Program]:
    bentoml = environment_with("bentoml", _BENTOML) / "bentoml"

    def command(port: int) -> list[str]:
        return [str(bentoml), "serve", f"{_PROGRAMS}.bento:Detector", "--host", "127.0.0.1", "--port", str(port)]

    return [Program(command, "/readyz", {"BENTOML_DO_NOT_TRACK": "True"})]


def contestants() -> list[Contestant]:
    """All of them; nothing is started or installed yet."""
    slow_path = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    return [
        Served("ours", "this application, fast path", {}),
        Served("ours_default", "this application, Serve's default path", slow_path),
        Served(
            "least",
            "the least that detects under Ray Serve, nothing stored",
            ALLOCATOR_VARIABLES,
            path="/detect",
            import_path=f"{_PROGRAMS}.least:build_app",
        ),
        Programs(
            "template",
            "the template's way, with our detector",
            "/images/",
            lambda: [_our_model_server(), _uvicorn("template_backend")],
        ),
        Programs(
            "owlvit",
            "the template's way, with a network of OWL-ViT's size",
            "/images/",
            lambda: [_owlvit_model_server(), _uvicorn("template_backend")],
            has_our_detector=False,
        ),
        Programs("plain", "FastAPI and uvicorn workers, nothing stored", "/detect", lambda: [_uvicorn("plain", CORES)]),
        Programs("litserve", "LitServe, nothing stored", "/detect", _litserve),
        Programs("bentoml", "BentoML, nothing stored", "/detect", _bentoml),
    ]
