"""The application under Serve, detecting in a model server instead of its own replicas."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx2
import pytest
from kserve import InferenceGRPCClient

from circles.detectors import detector_info
from serve_app.local import LocalModelServer
from serve_app.processes import free_port
from tests.pictures import disc_jpeg
from tests.protocols.clients import MODEL, v1_request, v2_request
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control]

KEY = {"X-API-Key": "alpha"}


class RestartableModelServer:
    """A model server that comes and goes at one address."""

    def __init__(self, folder: Path) -> None:
        self._local = LocalModelServer(folder, name=f"tests-{uuid.uuid4().hex}")
        self._ports = (free_port(), free_port())
        self.url = f"http://127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        assert self._local.start({}, *self._ports) == self.url

    def stop(self) -> None:
        self._local.stop()
        assert not self._local.processes()


@pytest.fixture(scope="module")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableModelServer]:
    server = RestartableModelServer(tmp_path_factory.mktemp("model-server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def service(model_server: RestartableModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    folder = tmp_path_factory.mktemp("serve")
    with running_serve(
        folder, MODEL_SERVER_URL=model_server.url, API_KEYS="alpha", RECONCILE_PERIOD_S="0.5"
    ) as service:
        yield service


@pytest.fixture
def client(service: RunningServe) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, headers=KEY, timeout=60) as client:
        yield client


def test_model_server_detects_and_no_replica_does(service: RunningServe, client: httpx2.Client) -> None:
    uploaded = client.post("/images/", files={"file": disc_jpeg(1)})
    assert uploaded.status_code == 201
    assert uploaded.json()["detection"]["detector"]["name"] == MODEL
    assert uploaded.json()["detection"]["count"] == 2
    assert service.replica_pids()["Detector"] == set()
    predicted = client.post(f"/v1/models/{MODEL}:predict", json=v1_request([disc_jpeg(1)]))
    assert len(predicted.json()["predictions"][0]) == 2
    # Its answers have told the version.
    assert client.get(f"/v2/models/{MODEL}").json()["versions"] == [detector_info("heatmap").version]


def test_uploads_wait_while_the_model_server_is_away(
    model_server: RestartableModelServer, client: httpx2.Client
) -> None:
    model_server.stop()
    uploaded = client.post("/images/", files={"file": disc_jpeg(2)})
    assert uploaded.status_code == 202
    refused = client.post(f"/v1/models/{MODEL}:predict", json=v1_request([disc_jpeg(2)]))
    assert (refused.status_code, set(refused.json())) == (503, {"error"})
    model_server.start()
    wait_until(lambda: client.get(uploaded.headers["Location"]).json()["status"] == "done")
    wait_until(lambda: client.get("/ready").status_code == 200)
    assert client.post("/images/", files={"file": disc_jpeg(3)}).status_code == 201


def test_replicas_share_no_grpc_port_with_other_services(service: RunningServe) -> None:
    """Serve's default is shared by all services of a machine (SO_REUSEPORT), which then answer for each other."""
    (ingress,) = service.replica_processes("Ingress")
    assert 40000 not in {connection.laddr.port for connection in ingress.connections(kind="tcp")}


def test_keys_are_wanted_by_every_protocol(service: RunningServe) -> None:
    for path in ("/v1/models", "/v2", f"/v2/models/{MODEL}"):
        assert httpx2.get(service.url + path).status_code == 401
        assert httpx2.get(service.url + path, headers=KEY).status_code == 200
    asked = v2_request([disc_jpeg(1)], {}, is_binary=True)

    async def ask(*metadata: tuple[str, str]) -> grpc.StatusCode:
        async with InferenceGRPCClient(service.grpc_address, retries=0) as client:
            try:
                await client.infer(asked, headers=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    assert asyncio.run(ask()) is grpc.StatusCode.UNAUTHENTICATED
    assert asyncio.run(ask(("x-api-key", "alph"))) is grpc.StatusCode.UNAUTHENTICATED
    assert asyncio.run(ask(("x-api-key", "alpha"))) is grpc.StatusCode.OK
    assert asyncio.run(ask(("authorization", "Bearer alpha"))) is grpc.StatusCode.OK
