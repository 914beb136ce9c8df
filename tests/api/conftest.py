"""The same tests against the application in this process, wherever its data is, and behind Serve."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from circles.detectors.encoded import open_detector
from circles.settings import Settings
from deployments.async_detectors import InProcessDetector
from tests.running import running_api
from tests.serving import running_serve
from tests.worlds import NAMES, opened_world


@pytest.fixture(scope="package", params=[*NAMES, pytest.param("serve", marks=pytest.mark.serve)])
def service_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service with the real detector."""
    external_url: str | None = request.config.getoption("--service-url")
    folder = tmp_path_factory.mktemp("api")
    if request.param in NAMES:
        with opened_world(request.param) as world:
            place = world.new_place(folder)
            settings = Settings(database_url=place.database_url, storage_url=place.storage_url, detector="hough")
            with running_api(settings, InProcessDetector(open_detector(settings))) as api:
                yield api.url
    elif external_url is not None:
        yield external_url
    else:
        with running_serve(folder) as service:
            yield service.url


@pytest.fixture
def client(service_url: str) -> Iterator[httpx2.Client]:
    """A client that removes what its test uploaded."""
    created: list[str] = []

    def note(response: httpx2.Response) -> None:
        is_upload = response.request.method == "POST" and response.request.url.path.rstrip("/").endswith("/images")
        if is_upload and response.status_code in (201, 202):
            created.append(response.headers["Location"])

    with httpx2.Client(base_url=service_url, timeout=60, event_hooks={"response": [note]}) as client:
        yield client
        for location in created:
            with contextlib.suppress(httpx2.HTTPStatusError):
                client.delete(location)


@pytest.fixture
def photograph(coins_val: Path) -> bytes:
    """A real photograph with one coin."""
    return next(iter(sorted(coins_val.glob("*.jpg")))).read_bytes()
