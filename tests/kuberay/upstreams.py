"""What stands behind the gateway: the application with a look at what reaches it, and servers that misbehave."""

import asyncio
import contextlib
import io
import socket
import socketserver
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
from starlette.types import ASGIApp, Receive, Scope, Send

from circles.geometry import Circle
from deployments.access import Access
from deployments.api import create_api
from deployments.api_keys import ApiKeys
from deployments.application_model import ApplicationModel
from deployments.inference.v2_grpc import InferenceServicer, add_inference_servicer
from deployments.services import open_services
from serve_app.processes import free_port
from tests.fakes import FixedDetector, GatedDetector
from tests.running import running_app, settings_in, wait_until

FOUND = (Circle(90, 110, 40), 0.9)
Behaviour = Literal["answer", "unavailable", "hang", "reset"]

_ANSWERS: dict[Behaviour, bytes] = {
    "answer": b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nscripted",
    "unavailable": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\n\r\n",
}


@dataclass(frozen=True)
class Arrived:
    """A request as the application got it."""

    method: str
    path: str
    """Decoded once, as the application sees it."""
    query: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Application:
    """The application, and what reached it."""

    port: int
    grpc_port: int
    operations: list[tuple[str, str]]
    """Methods and paths of its OpenAPI document."""
    arrived: list[Arrived]

    def probed(self, probe: str) -> list[Arrived]:
        """The requests whose query is this one."""
        return [each for each in self.arrived if each.query == probe]


class _Spy:
    """Notes each request before the application sees it."""

    def __init__(self, app: ASGIApp, arrived: list[Arrived]) -> None:
        self._app = app
        self._arrived = arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            query = scope["query_string"].decode()
            self._arrived.append(Arrived(scope["method"], scope["path"], query, headers))
        await self._app(scope, receive, send)


@contextlib.contextmanager
def running_application(folder: Path) -> Iterator[Application]:
    """Both doors of the application: HTTP, and the Open Inference Protocol's gRPC."""
    services = open_services(settings_in(folder / "http"), GatedDetector(FixedDetector(FOUND)), holder="a test")
    arrived: list[Arrived] = []
    api = create_api(services, is_behind_serve=False)
    api.add_middleware(_Spy, arrived=arrived)
    with running_app(api) as url, _running_grpc(folder / "grpc") as grpc_port:
        operations = [(method.upper(), path) for path, methods in api.openapi()["paths"].items() for method in methods]
        yield Application(int(url.rpartition(":")[2]), grpc_port, operations, arrived)


@contextlib.contextmanager
def _running_grpc(folder: Path) -> Iterator[int]:
    """The servicer without Serve, on an event loop of its own; its port."""
    services = open_services(settings_in(folder), GatedDetector(FixedDetector(FOUND)), holder="a test")
    port = free_port()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    started = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        add_inference_servicer(InferenceServicer(ApplicationModel(services), Access(ApiKeys([]))), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        async with contextlib.AsyncExitStack() as exits:
            await exits.enter_async_context(services.running())
            await server.start()
            started.set()
            await stop.wait()
            await server.stop(grace=None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    wait_until(started.is_set)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
        assert not thread.is_alive()
        loop.close()


class ScriptedServer:
    """Reads requests of HTTP/1.1, and does with each what the script says; then what it does otherwise."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        self.requests: list[str] = []
        """First lines of what came in."""
        self.script: deque[Behaviour] = deque()
        self._behaviour = behaviour
        self._has_ended = threading.Event()
        scripted = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    while (request := _read_request(self.rfile)) and scripted._answer(self, request):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]

    @contextlib.contextmanager
    def running(self) -> Iterator["ScriptedServer"]:
        """Until the context is left."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._has_ended.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(timeout=30)

    def _answer(self, handler: socketserver.StreamRequestHandler, request: str) -> bool:
        """Whether the connection stays."""
        self.requests.append(request)
        behaviour = self.script.popleft() if self.script else self._behaviour
        if behaviour in _ANSWERS:
            handler.wfile.write(_ANSWERS[behaviour])
            return True
        if behaviour == "hang":
            self._has_ended.wait()
        else:
            # Closed with bytes of its own unsent thrown away: a reset instead of an end.
            handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.request.close()
        return False


def _read_request(stream: io.BufferedIOBase) -> str:
    """The first line; the rest is read too. Empty at the end."""
    first = stream.readline().decode("latin-1").strip()
    length = 0
    while first and (line := stream.readline().strip().lower()):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            length = int(value)
    stream.read(length)
    return first
