"""One service behind the real proxy, with secrets whose traces are looked for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from circles.storage.schema import migrate
from serve_app.processes import free_port
from tests.servers import Server, postgresql, seaweedfs
from tests.serving import RunningServe, running_serve

KEY = "planted-key-of-the-first-client"
OTHER_KEY = "planted-key-of-the-second-client"
DATABASE_PASSWORD = "planted-password-of-the-database"
RATE_PER_HOUR = 600
UPLOAD_TIMEOUT_S = 8
CLIENT_TIMEOUT_S = 20


@dataclass(frozen=True)
class Guarded:
    """The service, what it stands on, and what nobody may read anywhere."""

    serve: RunningServe
    database: Server
    bucket: Server
    logs: Path
    """Ray's, of this cluster alone."""

    @property
    def secrets(self) -> list[str]:
        return [KEY, OTHER_KEY, DATABASE_PASSWORD, self.bucket.variables["AWS_SECRET_ACCESS_KEY"]]

    @property
    def metrics_url(self) -> str:
        """HAProxy's."""
        return f"http://127.0.0.1:{self.serve.environment['RAY_SERVE_HAPROXY_METRICS_PORT']}/metrics"

    def log_text(self, folder: str = ".") -> str:
        """All that was logged, by the application's replicas and proxies in `serve`."""
        files = [path for path in (self.logs / folder).rglob("*") if path.is_file()]
        return "\n".join(path.read_text(errors="replace") for path in files)

    def listeners(self) -> Iterator[tuple[str, int, str]]:
        """Address, port and program of all that listens."""
        programs = {process.pid: " ".join(command) for process, command in self.serve.local.commands()}
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.pid in programs:
                yield connection.laddr.ip, connection.laddr.port, programs[connection.pid]


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with postgresql() as database, seaweedfs() as bucket:
        url = database.url.replace("circles@", f"circles:{DATABASE_PASSWORD}@")
        migrate(url)
        settings = {
            **bucket.variables,
            "API_KEYS": f"{KEY},{OTHER_KEY}",
            "RATE_LIMIT": f"{RATE_PER_HOUR}/hour",
            "DATABASE_URL": url,
            "STORAGE_URL": bucket.url,
            "DETECTOR": "dummy",
            "UPLOAD_TIMEOUT_S": str(UPLOAD_TIMEOUT_S),
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_TIMEOUT_S),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        }
        with running_serve(tmp_path_factory.mktemp("guarded"), **settings) as serve:
            yield Guarded(serve, database, bucket, _logs(serve))


def _logs(serve: RunningServe) -> Path:
    for _, command in serve.local.commands():
        found = re.search(r"--log_dir=(\S+)", " ".join(command))
        if found:
            return Path(found.group(1))
    raise AssertionError("no process of Ray's names its logs")
