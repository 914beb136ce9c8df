"""The same tests against the model server and against the application behind Serve."""

import uuid
from collections.abc import Iterator

import httpx2
import pytest

from circles.detectors.encoded import EncodedDetector, open_detector
from circles.settings import Settings
from serve_app.local import LocalModelServer
from serve_app.processes import free_port
from tests.protocols.clients import InferenceServer
from tests.serving import running_serve


@pytest.fixture(scope="package", params=["model server", pytest.param("serve", marks=pytest.mark.serve)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    """A server with the default detector."""
    external_url: str | None = request.config.getoption("--service-url")
    folder = tmp_path_factory.mktemp("protocols")
    if request.param == "model server":
        local = LocalModelServer(folder, name=f"tests-{uuid.uuid4().hex}")
        http_port, grpc_port = free_port(), free_port()
        try:
            yield InferenceServer(local.start({}, http_port, grpc_port), f"127.0.0.1:{grpc_port}")
        finally:
            local.stop()
            assert not local.processes()
    elif external_url is not None:
        is_elsewhere = httpx2.get(f"{external_url}/config").json()["model_server_url"] is not None
        yield InferenceServer(external_url, request.config.getoption("--service-grpc"), is_elsewhere)
    else:
        with running_serve(folder) as service:
            yield InferenceServer(service.url, service.grpc_address)


@pytest.fixture(scope="package")
def detector() -> EncodedDetector:
    """The same detector in this process."""
    return open_detector(Settings())
