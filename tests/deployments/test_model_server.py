"""The model server: its state is the model's, and requests never keep its event loop."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from circles.detectors.encoded import EncodedDetector
from circles.detectors.guarded import GuardedDetector
from circles.errors import WeightsError
from circles.geometry import Circle
from circles.settings import Settings
from deployments.async_detectors import InProcessDetector
from deployments.kserve_model import CircleModel
from deployments.model_server import create_model_server
from serve_app.processes import free_port
from tests.fakes import BlockedDetector, FixedDetector
from tests.pictures import disc_jpeg, encode
from tests.protocols.clients import MODEL, v1_request
from tests.running import running_app, wait_until

FOUND = (Circle(90, 110, 40), 0.9)
LOAD = f"/v2/repository/models/{MODEL}/load"
UNLOAD = f"/v2/repository/models/{MODEL}/unload"


@contextmanager
def model_server(detector: FixedDetector | None = None, **changes: Any) -> Iterator[tuple[httpx2.Client, str]]:
    """A client and the address of gRPC."""
    model = CircleModel(Settings(mode="dummy", **changes))
    if detector is None:
        model.load()
    else:
        model._detector = InProcessDetector(EncodedDetector(detector, 10**9, 0.1), 8)
        model.ready = True
    grpc_address = f"127.0.0.1:{free_port()}"
    with (
        running_app(create_model_server(model, grpc_address)) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        yield client, grpc_address


def predict(client: httpx2.Client, count: int = 1) -> httpx2.Response:
    images = [disc_jpeg(seed) for seed in range(count)]
    return client.post(f"/v1/models/{MODEL}:predict", json=v1_request(images, {"min_score": 0}))


def test_unloaded_model_is_not_ready_by_any_protocol() -> None:
    with model_server() as (client, grpc_address):
        assert client.post(UNLOAD).json() == {"name": MODEL, "unload": True}
        for path in (f"/v1/models/{MODEL}", f"/v2/models/{MODEL}/ready", "/v2/health/ready"):
            assert client.get(path).status_code == 503, path
        assert client.get("/v2/health/ready").json() == {"ready": False}
        for refused in (predict(client), client.post(f"/v2/models/{MODEL}/infer", content=b"{}")):
            assert (refused.status_code, refused.json()) == (503, {"error": f"model '{MODEL}' is not ready"})
            assert refused.headers["Retry-After"]
        assert client.post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
        assert grpc_states(grpc_address) == (False, False, grpc.StatusCode.UNAVAILABLE)
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/").status_code == 200
        assert client.get(f"/v2/models/{MODEL}").json()["versions"] == ["1"]

        assert client.post(LOAD).json() == {"name": MODEL, "load": True}
        assert client.post(LOAD).status_code == 200
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert grpc_states(grpc_address) == (True, True, grpc.StatusCode.INVALID_ARGUMENT)
        assert predict(client).status_code == 200
        for path in (LOAD, UNLOAD):
            assert client.post(path.replace(MODEL, "nope")).status_code == 404


def grpc_states(address: str) -> tuple[bool, bool, grpc.StatusCode]:
    """Whether server and model are ready, and how a request without inputs is refused."""
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        server = stub.ServerReady(kserve_messages.ServerReadyRequest(), timeout=10)
        model = stub.ModelReady(kserve_messages.ModelReadyRequest(name=MODEL), timeout=10)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.ModelInfer(kserve_messages.ModelInferRequest(model_name=MODEL), timeout=10)
    return server.ready, model.ready, refusal.value.code()


def test_model_is_loaded_and_unloaded_over_grpc() -> None:
    with model_server() as (client, grpc_address), grpc.insecure_channel(grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        unloaded = stub.RepositoryModelUnload(
            kserve_messages.RepositoryModelUnloadRequest(model_name=MODEL), timeout=10
        )
        assert (unloaded.model_name, unloaded.isUnloaded) == (MODEL, True)
        assert client.get("/v2/health/ready").status_code == 503
        loaded = stub.RepositoryModelLoad(kserve_messages.RepositoryModelLoadRequest(model_name=MODEL), timeout=10)
        assert (loaded.model_name, loaded.isLoaded) == (MODEL, True)
        assert client.get("/v2/health/ready").status_code == 200
        metadata = stub.ServerMetadata(kserve_messages.ServerMetadataRequest(), timeout=10)
        assert list(metadata.extensions) == ["binary_tensor_data", "model_repository"]
        model = stub.ModelMetadata(kserve_messages.ModelMetadataRequest(name=MODEL), timeout=10)
        assert [tensor.name for tensor in model.outputs] == ["boxes", "circles", "scores", "image_index"]
        assert list(model.versions) == ["1"]


def test_health_answers_and_the_rest_is_batched_while_a_picture_is_computed() -> None:
    blocked = BlockedDetector(FOUND)
    with model_server(blocked) as (client, _), ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(predict, client) for _ in range(6)]
        assert blocked.has_begun.wait(10)
        for path in ("/v2/health/ready", "/v2/health/live", f"/v2/models/{MODEL}", "/metrics"):
            assert client.get(path, timeout=15).status_code == 200
        wait_until(lambda: all(future.running() for future in asked))
        blocked.release()
        assert [future.result().status_code for future in asked] == [200] * 6
    assert sum(blocked.batch_sizes) == 6
    assert len(blocked.batch_sizes) < 6


def test_more_at_once_than_allowed_is_refused() -> None:
    blocked = BlockedDetector(FOUND)
    with model_server(blocked, max_in_flight=2) as (client, _), ThreadPoolExecutor(1) as pool:
        # Three pictures, of which two are worked on: those take all the room there is.
        asked = pool.submit(predict, client, 3)
        assert blocked.has_begun.wait(10)
        refused = predict(client)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert set(refused.json()) == {"error"}
        blocked.release()
        assert len(asked.result().json()["predictions"]) == 3
        assert predict(client).status_code == 200


def test_nobody_waits_without_limit() -> None:
    blocked = BlockedDetector(FOUND)
    with model_server(blocked, detection_timeout_s=0.2) as (client, _):
        refused = predict(client)
        assert (refused.status_code, refused.json()) == (503, {"error": "no detector answered within 0.2 s"})
        blocked.release()


def test_picture_over_which_the_detector_stumbles_is_named() -> None:
    with model_server(FixedDetector(FOUND, fails_at_width=320)) as (client, _):
        refused = predict(client)
        assert refused.status_code == 500
        assert refused.json() == {"error": "instance 0: the detector failed on this picture: RuntimeError"}


def test_metrics_count_requests() -> None:
    name = f'request_predict_seconds_count{{model_name="{MODEL}"}}'

    def count(client: httpx2.Client) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    with model_server() as (client, _):
        before = count(client)
        predict(client, 3)
        assert count(client) == before + 1


def test_unknown_paths_and_methods_are_told_in_the_protocols_form() -> None:
    with model_server() as (client, _):
        for response, status in ((client.get("/nope"), 404), (client.get("/v1/models/x:predict"), 404)):
            assert (response.status_code, set(response.json())) == (status, {"error"})
        assert client.put("/v2").status_code == 405


def test_model_is_a_kserve_model() -> None:
    """Its life is the base class's: not ready before it is loaded, healthy after."""
    model = CircleModel(Settings(mode="dummy"))
    assert not asyncio.run(model.healthy())
    model.load()
    assert asyncio.run(model.healthy())
    asyncio.run(model.unload_model())


def test_load_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server() as (client, grpc_address):
        client.post(UNLOAD)
        monkeypatch.setattr("deployments.kserve_model.GuardedDetector", _damaged)
        refused = client.post(LOAD)
        assert (refused.status_code, refused.json()) == (500, {"error": "told to be damaged"})
        assert client.get("/v2/health/ready").status_code == 503
        request = kserve_messages.RepositoryModelLoadRequest(model_name=MODEL)
        with grpc.insecure_channel(grpc_address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refusal:
                stub.RepositoryModelLoad(request, timeout=10)
        assert refusal.value.code() is grpc.StatusCode.INTERNAL


def _damaged(_: Settings) -> GuardedDetector:
    raise WeightsError("told to be damaged")


def test_unload_waits_for_a_load_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(settings: Settings) -> GuardedDetector:
        has_begun.set()
        assert may_end.wait(10)
        return GuardedDetector(settings)

    with model_server() as (client, _), ThreadPoolExecutor(2) as pool:
        client.post(UNLOAD)
        monkeypatch.setattr("deployments.kserve_model.GuardedDetector", slow)
        loading = pool.submit(client.post, LOAD)
        assert has_begun.wait(10)
        unloading = pool.submit(client.post, UNLOAD)
        may_end.set()
        assert (loading.result().status_code, unloading.result().status_code) == (200, 200)
        assert client.get("/v2/health/ready").status_code == 503


def test_port_of_grpc_is_not_shared() -> None:
    """Another server would answer half of the calls."""
    with model_server() as (_, grpc_address):
        model = CircleModel(Settings(mode="dummy"))
        app = create_model_server(model, grpc_address)
        with pytest.raises(RuntimeError, match=grpc_address.rpartition(":")[2]):
            asyncio.run(_start_and_stop(app))


async def _start_and_stop(app: FastAPI) -> None:
    async with app.router.lifespan_context(app):
        return


def test_large_bodies_take_the_room_of_many_pictures() -> None:
    blocked = BlockedDetector(FOUND)
    with model_server(blocked, max_in_flight_bytes=400_000) as (client, _), ThreadPoolExecutor(1) as pool:
        large = [encode(np.zeros((8, 8, 3), np.uint8))] * 10 + [b"\0" * 400_000]
        asked = pool.submit(predict, client)
        assert blocked.has_begun.wait(10)
        refused = client.post(f"/v1/models/{MODEL}:predict", json=v1_request(large))
        assert refused.status_code == 429
        blocked.release()
        assert asked.result().status_code == 200
        assert client.post(f"/v1/models/{MODEL}:predict", json=v1_request(large)).status_code == 400, (
            "alone it has room"
        )
