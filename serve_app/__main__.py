"""``python -m serve_app``: the application and the model server on this machine, for the words of the justfile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from circles.errors import CirclesError
from circles.settings import Settings, why_refused
from circles.storage.engine import is_sqlite
from circles.storage.lock import DataFolderLock
from circles.storage.schema import migrate
from serve_app.local import LocalModelServer, LocalService, Ports
from serve_app.processes import ROOT, LocalProcess, LocalServiceError, open_directly, stop_all

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(soft_wrap=True)


Real = Annotated[bool, typer.Option("--real", "-r", help="Detect for real; without it the answers are fixed.")]
Background = Annotated[bool, typer.Option("--background", "-b", help="Return once it is ready.")]
Port = Annotated[int, typer.Option(help="Port of the application.")]
GrpcPort = Annotated[int, typer.Option(help="Port of the application's gRPC.")]

_LOGS = ROOT / "logs"
_MODEL_SERVER_PORTS = (9090, 9091)  # HTTP, gRPC


def _service() -> LocalService:
    return LocalService(_LOGS)


@cli.command()
def start(real: Real = False, background: Background = False, port: Port = 8000, grpc_port: GrpcPort = 9000) -> None:
    """Start the application, and stay until Ctrl-C unless in the background."""
    service = _service()
    with _ended_by_interrupt(service):
        _start(service, {"MODE": "real" if real else "dummy"}, Ports.from_environment(port, grpc_port))
        if not background:
            _stay(service)


@cli.command()
def model_server(
    background: Background = False,
    port: Annotated[int, typer.Option(help="Port of REST, /docs and /metrics.")] = _MODEL_SERVER_PORTS[0],
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC.")] = _MODEL_SERVER_PORTS[1],
) -> None:
    """Start the KServe model server, and stay until Ctrl-C unless in the background."""
    server = LocalModelServer(_LOGS)
    with _ended_by_interrupt(server):
        _start_model_server(server, port, grpc_port)
        if not background:
            _stay(server)


@cli.command()
def dev(
    port: Port = 8000,
    grpc_port: GrpcPort = 9000,
    kserve: Annotated[bool, typer.Option("--kserve", help="Detect in the KServe model server.")] = False,
) -> None:
    """Start it for real, test it, evaluate it, sum up, and stay until Ctrl-C."""
    service, server = _service(), LocalModelServer(_LOGS)
    with _ended_by_interrupt(service, server):
        variables = {"MODE": "real"}
        if kserve:
            variables["MODEL_SERVER_URL"] = _start_model_server(server, *_MODEL_SERVER_PORTS)
        _start(service, variables, Ports.from_environment(port, grpc_port))
        url = service.running().url
        table = Table("check", "outcome", title="summary")
        is_passed = _run("pytest", "-q", "-m", "serve and not control", "--service-url", url)
        table.add_row("integration tests", _outcome(is_passed))
        output = ROOT / "evaluation" / "output" / "dev"
        is_passed = _run("evaluation", "--url", url, "--output", str(output))
        table.add_row("evaluation", _outcome(is_passed))
        if is_passed:
            _add_results(table, output)
        console.print(table)
        _print_endpoints(service)
        _stay(service, *([server] if kserve else []))


@cli.command()
def stop() -> None:
    """End everything that was started from this checkout."""
    console.print(f"ended {stop_all()} processes")


@cli.command()
def status() -> None:
    """Show what runs."""
    service = _service()
    try:
        running = service.running()
    except LocalServiceError as error:
        _fail(error)
    console.print(f"running since process {running.pid}, mode {running.mode}, {running.url}")
    application = service.application_status()
    table = Table("deployment", "status", "replicas", title=f"application circles: {application.get('status')}")
    deployments = application.get("deployments")
    if isinstance(deployments, dict):
        for name, deployment in deployments.items():
            states = [replica["state"] for replica in deployment["replicas"]]
            counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
            table.add_row(name, deployment["status"], counts or "none")
    console.print(table)


@cli.command()
def health(url: Annotated[str, typer.Option(help="Of the service to ask.")] = "http://127.0.0.1:8000") -> None:
    """Ask a service whether it is alive and ready."""
    is_well = True
    for path in ("/health", "/ready"):
        try:
            with open_directly(url + path, timeout=10) as response:
                code, body = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            code, body = error.code, error.read().decode()
        except OSError as error:
            _fail(f"{url}{path} does not answer: {error}")
        is_well = is_well and code == 200
        console.print(f"{path}: {code} {body}", markup=False)
    raise typer.Exit(0 if is_well else 1)


@cli.command()
def logs(follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False) -> None:
    """Show the application's logs: logs/serve.log of its start, and those of the replicas that run now."""
    service = _service()
    if not service.log_path.is_file():
        _fail(f"there is no {service.log_path} yet")
    paths = [str(path) for path in service.log_paths()]
    os.execvp("tail", ["tail", "-n", "100", *(["-F"] if follow else []), *paths])  # noqa: S606, S607


@cli.command()
def endpoints() -> None:
    """Show the addresses of what runs."""
    try:
        _print_endpoints(_service())
    except LocalServiceError as error:
        _fail(error)


@contextlib.contextmanager
def _ended_by_interrupt(*programs: LocalProcess) -> Iterator[None]:
    """Leaves nothing that was started here running when Ctrl-C, a SIGTERM or a SIGHUP comes, or something breaks."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print("stopping")
        _stop(programs)
        raise typer.Exit(130) from None
    except BaseException:
        _stop(programs)
        raise


def _stop(programs: Sequence[LocalProcess]) -> None:
    for program in programs:
        if program.has_started:
            program.stop()


def _start(service: LocalService, variables: dict[str, str], ports: Ports) -> None:
    try:
        settings = Settings.model_validate({name.lower(): value for name, value in variables.items()})
        if not service.processes():
            _prepare_database(settings)
    except ValidationError as error:
        _fail(why_refused(error))
    except CirclesError as error:
        _fail(error.detail)
    is_elsewhere = settings.mode == "real" and settings.model_server_url is not None
    elsewhere = f", detecting at {settings.model_server_url}" if is_elsewhere else ""
    console.print(f"starting the application in {settings.mode} mode{elsewhere}, log in {service.log_path}")
    try:
        service.start(variables, ports)
    except LocalServiceError as error:
        _fail(error)
    console.print(f"ready at {service.running().url}")


def _prepare_database(settings: Settings) -> None:
    """Makes sure that the application will find the database as it wants it."""
    if is_sqlite(settings.database_url):
        # Asked here for a quick answer; the ingress replica takes the lock for good, and migrates.
        DataFolderLock(ROOT / settings.database_path.parent, holder="a start").release()
        return
    migrate(settings.database_url)


def _start_model_server(server: LocalModelServer, port: int, grpc_port: int) -> str:
    console.print(f"starting the model server, log in {server.log_path}")
    try:
        url = server.start({}, port, grpc_port)
    except LocalServiceError as error:
        _fail(error)
    console.print(f"ready at {url} (gRPC at 127.0.0.1:{grpc_port}), documentation at {url}/docs")
    return url


def _stay(program: LocalProcess, *others: LocalProcess) -> None:
    """Waits for Ctrl-C, then ends all of them; fails when the first ends by itself."""
    console.print("Ctrl-C stops it")
    try:
        status = program.wait()
    except KeyboardInterrupt:
        console.print("stopping")
        _stop([program, *others])
        return
    _fail(f"it ended with {status}; see {program.log_path}")


def _run(module: str, *arguments: str) -> bool:
    console.rule(f"python -m {module} {' '.join(arguments)}")
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False).returncode == 0  # noqa: S603


def _outcome(is_passed: bool) -> str:
    return "[green]passed[/]" if is_passed else "[red]failed[/]"


def _add_results(table: Table, output: Path) -> None:
    """The evaluation's main numbers."""
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    table.add_row("pictures, objects", f"{metrics['images']}, {metrics['objects']}")
    table.add_row("F1 at IoU 0.5", f"{metrics['f1_50']:.4f}")
    table.add_row("mean Jaccard index", f"{metrics['jaccard']:.4f}")
    table.add_row("seconds an upload", f"{metrics['seconds']['median']:.3f} (median)")
    table.add_row("report", str(output / "report.html"))


def _print_endpoints(service: LocalService) -> None:
    running = service.running()
    table = Table("what", "address", title="endpoints")
    table.add_row("page", running.url)
    table.add_row("documentation", f"{running.url}/docs")
    table.add_row("upload", f"POST {running.url}/images/")
    table.add_row("inference, V1 and V2", f"{running.url}/v1/models, {running.url}/v2")
    table.add_row("inference, V2 over gRPC", running.grpc_address)
    if running.model_server_url is not None:
        table.add_row("model server", f"{running.model_server_url}, {running.model_server_url}/docs")
    table.add_row("health, readiness", f"{running.url}/health, {running.url}/ready")
    if running.dashboard_url is not None:
        token = Path.home() / ".ray" / "auth_token"
        hint = f" (token in {token})" if token.is_file() else ""
        table.add_row("Ray dashboard", running.dashboard_url + hint)
    table.add_row("log", str(service.log_path))
    console.print(table)


def _fail(reason: object) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(reason))}")
    raise typer.Exit(1)


if __name__ == "__main__":
    cli()
