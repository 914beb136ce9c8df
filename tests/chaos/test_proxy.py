"""What HAProxy answers by itself, while there is nobody behind it, is nothing that a client could misunderstand."""

import contextlib
import time
from collections.abc import Callable, Iterator

import httpx2
import psutil
import pytest

from circles.storage.records import image_id_of
from tests.chaos.kills import kinds_present, wait_for_serves_haproxy
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(300)]

BACK_S = 60.0
GOOD_ANSWERS = 20
"""One after the other: it is back."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    with running_serve(tmp_path_factory.mktemp("proxy"), MODE="dummy") as service:
        yield service


def test_dummy_mode_needs_no_detector_replicas(service: RunningServe) -> None:
    assert service.replica_processes("Detector") == []
    with service.client() as client:
        assert client.get("/health").json()["mode"] == "dummy"
        assert client.get("/ready").json()["checks"]["detector"] == "ok"
        body = client.post("/images/", files={"file": disc_jpeg(2)}).json()
        assert body["detection"]["detector"]["name"] == "dummy"
        assert body["detection"]["count"] == 3
        assert client.post("/images/", files={"file": disc_jpeg(2)[:-1500]}).status_code == 422


@pytest.mark.parametrize(
    "kinds",
    [("ingress replica", "fallback proxy"), ("proxy's manager",), ("proxy (HAProxy)",)],
    ids=["all behind it", "its manager", "itself"],
)
def test_picture_that_is_there_is_never_said_to_be_absent(service: RunningServe, kinds: tuple[str, ...]) -> None:
    """Until all is back: the picture, or that it cannot be had just now, and when to ask again; or no connection."""
    image_bytes = disc_jpeg(1)
    wait_until(lambda: _is_kept(service, image_bytes))  # what was killed before may not be wholly back
    wait_for_serves_haproxy(service)
    killed = [process for kind in kinds for process in kinds_present(service)[kind]]
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            process.kill()
    url = f"{service.url}/images/{image_id_of(image_bytes)}/content"
    answers = list(answers_until_back(url, lambda: _are_replaced(service, kinds, killed)))
    for answer in answers:
        if answer.status_code == 200:
            assert answer.content == image_bytes
            continue
        assert answer.status_code in (502, 503), answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        assert int(answer.headers["Retry-After"]) > 0


def _is_kept(service: RunningServe, image_bytes: bytes) -> bool:
    try:
        with service.client() as client:
            return client.post("/images/", files={"file": image_bytes}).status_code in (200, 201)
    except httpx2.TransportError:
        return False


def _are_replaced(service: RunningServe, kinds: tuple[str, ...], killed: list[psutil.Process]) -> bool:
    present = kinds_present(service)
    return all(present.get(kind) and not set(present[kind]) & set(killed) for kind in kinds)


def answers_until_back(url: str, is_back: Callable[[], bool]) -> Iterator[httpx2.Response]:
    """All answers until this holds, and then so many were good one after the other."""
    deadline = time.monotonic() + BACK_S
    good = 0
    while good < GOOD_ANSWERS or not is_back():
        assert time.monotonic() < deadline, f"not back within {BACK_S:g} s"
        try:
            answer = httpx2.get(url, timeout=30, trust_env=False)
        except httpx2.HTTPError:
            good = 0
            continue
        good = good + 1 if answer.status_code == 200 else 0
        yield answer
