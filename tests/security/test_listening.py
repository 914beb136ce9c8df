"""What can be reached from other machines while the service runs on this one, and what it says without a key."""

import time
from pathlib import Path

import grpc
import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.inference.v2_grpc import _REQUESTS, SERVICE_NAME
from tests.running import wait_until
from tests.security.conftest import KEY, OTHER_KEY, RATE_PER_HOUR, Guarded

pytestmark = pytest.mark.serve

LOOPBACK = ("127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")
INTERNAL = [
    # What Ray's processes and Serve's replicas ask each other; with the cluster's token.
    *("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.NodeManagerService/GetNodeStats"),
    *("/ray.rpc.CoreWorkerService/PushTask", "/ray.rpc.ObjectManagerService/Push"),
    *("/ray.rpc.ReporterService/HealthCheck", "/ray.rpc.RuntimeEnvService/DeleteRuntimeEnvIfPossible"),
    "/ray.serve.ASGIService/HandleRequest",
    # Ours, on the ports where HAProxy asks the replicas; with a key.
    f"/{SERVICE_NAME}/ServerMetadata",
]


def _status(
    address: str, method: str, metadata: tuple[tuple[str, str], ...] = (), request: bytes = b""
) -> grpc.StatusCode:
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_all_that_answers_without_a_token_is_on_loopback(guarded: Guarded) -> None:
    """The service, Ray's dashboard, which is Serve's control port too, and HAProxy's statistics and metrics."""
    listeners = list(guarded.listeners())
    proxies = {(ip, port) for ip, port, program in listeners if "/haproxy " in program}
    assert len(proxies) == 4
    assert {ip for ip, _ in proxies} <= set(LOOPBACK)
    dashboard = int(str(guarded.serve.local.running().dashboard_url).rsplit(":", 1)[1])
    assert [ip for ip, port, _ in listeners if port == dashboard] == ["127.0.0.1"]
    replicas = [
        ip
        for ip, port, program in listeners
        if "ServeReplica" in program and _http(f"127.0.0.1:{port}", "/health") is not None
    ]
    assert replicas == ["127.0.0.1"]


def test_what_other_machines_reach_wants_a_token(guarded: Guarded) -> None:
    """Ray has no setting that keeps the ports of its own processes on loopback."""
    exposed = [listener for listener in guarded.listeners() if listener[0] not in LOOPBACK]
    assert len(exposed) > 5
    for ip, port, program in exposed:
        address = f"{'127.0.0.1' if ip in EVERYWHERE else ip}:{port}"
        paths = ("/metrics", "/api/serve/applications/")
        over_http = [answer for path in paths if (answer := _http(address, path)) is not None]
        if over_http:
            assert len(over_http) == len(paths), (address, program)
            if any(answer.status_code != 401 for answer in over_http):  # Ray's agents tell metrics, whatever is asked
                assert "dashboard" in program.lower() or "monitor.py" in program
                assert all(map(_is_metrics, over_http))
            continue
        answers = {_status(address, method) for method in INTERNAL}
        assert grpc.StatusCode.UNAUTHENTICATED in answers, (address, program, answers)
        assert answers <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}, (address, program, answers)


def test_the_control_port_wants_a_token(guarded: Guarded) -> None:
    url = guarded.serve.local.running().dashboard_url
    for method, path in (
        ("GET", "/api/serve/applications/"),
        ("PUT", "/api/serve/applications/"),
        ("POST", "/api/jobs/"),
    ):
        assert httpx2.request(method, f"{url}{path}").status_code == 401


def test_proxy_is_commanded_by_its_own_user_alone(guarded: Guarded) -> None:
    commands = (command for _, command in guarded.serve.local.commands())
    (config,) = {command[command.index("-f") + 1] for command in commands if Path(command[0]).name == "haproxy"}
    assert (Path(config).parent / "admin.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("method", _REQUESTS)
def test_grpc_wants_a_key_too(guarded: Guarded, method: str) -> None:
    address, path = guarded.serve.grpc_address, f"/{SERVICE_NAME}/{method}"
    assert _status(address, path) is grpc.StatusCode.UNAUTHENTICATED
    for wrong in ({"x-api-key": "guess"}, {"authorization": f"Basic {KEY}"}, {"x-api-key": ""}):
        assert _status(address, path, tuple(wrong.items())) is grpc.StatusCode.UNAUTHENTICATED
    for right in ({"x-api-key": KEY}, {"authorization": f"Bearer {OTHER_KEY}"}):
        assert _status(address, path, tuple(right.items())) is not grpc.StatusCode.UNAUTHENTICATED


def test_addresses_cannot_be_made_up(guarded: Guarded) -> None:
    """Without keys, a client has one budget, whatever it says of itself: HAProxy tells the address."""
    # What was counted weighs less from the clock's next hour on: none begins among these requests.
    wait_until(lambda: time.time() % 3600 < 3540, timeout_s=70)
    transport = httpx2.HTTPTransport(local_address="127.0.0.7")
    with httpx2.Client(base_url=guarded.serve.url, transport=transport, timeout=30) as client:
        responses = [
            client.get("/images/", headers={"X-Forwarded-For": f"192.0.2.{number % 250}", "Forwarded": "for=192.0.2.1"})
            for number in range(RATE_PER_HOUR + 1)
        ]
    assert [response.status_code for response in responses] == [401] * RATE_PER_HOUR + [429]
    assert int(responses[-1].headers["Retry-After"]) > 0
    with guarded.serve.client() as client:
        assert client.get("/images/").status_code == 401
        assert client.get("/images/", headers={"X-API-Key": KEY}).status_code == 200


def _is_metrics(answer: httpx2.Response) -> bool:
    try:
        return bool(list(text_string_to_metric_families(answer.text)))
    except ValueError:
        return False


def _http(address: str, path: str) -> httpx2.Response | None:
    """What is answered over HTTP; None where another protocol is spoken."""
    try:
        return httpx2.get(f"http://{address}{path}", timeout=5)
    except httpx2.TransportError:
        return None
