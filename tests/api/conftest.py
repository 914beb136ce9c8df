"""The same tests against the application in this process and behind Serve."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from circles.detectors.encoded import open_detector
from deployments.async_detectors import InProcessDetector
from tests.running import running_api, settings_in
from tests.serving import running_serve


@pytest.fixture(scope="session", params=["in-process", pytest.param("serve", marks=pytest.mark.serve)])
def service_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service with the real detector."""
    external_url: str | None = request.config.getoption("--service-url")
    folder = tmp_path_factory.mktemp("api")
    if request.param == "in-process":
        settings = settings_in(folder, detector="hough")
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
