"""Detectors that hang or are gone under a real Serve: uploads are kept and finished later, and nothing else notices."""

import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from circles.storage.records import image_id_of
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(300)]

DETECTION_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    folder = tmp_path_factory.mktemp("detector")
    settings = {"DETECTOR_MAX_REPLICAS": "1", "DETECTION_TIMEOUT_S": str(DETECTION_TIMEOUT_S)}
    with running_serve(folder, **settings) as service:
        yield service


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that are there, and never answer."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def bytes_taken(service: RunningServe, path: str) -> int:
    """How much of a large body is taken from a client by a route that reads none, and waits for the detector."""
    address = urlsplit(service.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0))) as connection:
        length = 256 * 2**20
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        connection.settimeout(0.5)
        taken, piece = 0, bytes(2**16)
        try:
            while taken < length:
                taken += connection.send(piece)
        except (TimeoutError, ConnectionError):  # nobody takes more, or the answer came first
            return taken
    return taken


def is_done(client: httpx2.Client, image_bytes: bytes) -> bool:
    return bool(client.get(f"/images/{image_id_of(image_bytes)}").json()["status"] == "done")


def is_known_as_done(client: httpx2.Client, image_bytes: bytes) -> bool:
    """Uploads it, again where it is there."""
    answer = client.post("/images/", files={"file": image_bytes})
    return answer.status_code in (200, 201) and bool(answer.json()["status"] == "done")


def pending_by_metrics(service: RunningServe) -> float | None:
    """What Prometheus is told of the backlog; None until something is."""
    told = re.findall(r"^ray_circles_pending_images\{.*\} (\S+)$", service.metrics(), re.MULTILINE)
    return max(map(float, told), default=None)


def assert_kept_as_pending(client: httpx2.Client, image_bytes: bytes) -> None:
    start = time.monotonic()
    answer = client.post("/images/", files={"file": image_bytes})
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert time.monotonic() - start < DETECTION_TIMEOUT_S + 5
    assert client.get(f"/images/{image_id_of(image_bytes)}/content").content == image_bytes


def test_hung_detector_makes_uploads_pending_and_holds_up_nothing_else(service: RunningServe) -> None:
    """The replica and all that belongs to it are stopped as by a debugger: connections stay, answers do not come."""
    known, waiting = disc_jpeg(1), [disc_jpeg(seed) for seed in range(2, 6)]
    with service.client() as client:
        # The first picture after a start may take the detector longer than it is waited for.
        wait_until(partial(is_known_as_done, client, known), timeout_s=60)
        (replica,) = service.replica_processes("Detector")
        with stopped([replica, *replica.children(recursive=True)]):
            for image_bytes in waiting:
                assert_kept_as_pending(client, image_bytes)
            wait_until(lambda: pending_by_metrics(service) == len(waiting), timeout_s=60)
            assert client.post("/images/", files={"file": known}).status_code == 200
            assert client.get("/health").status_code == 200
            assert client.get("/images/").status_code == 200
            assert (
                bytes_taken(service, f"/images/{image_id_of(known)}/detection") < 32 * 2**20
            )  # of 256: the kernel's buffers
        for image_bytes in waiting:
            wait_until(partial(is_done, client, image_bytes), timeout_s=60)


def test_detector_that_is_gone_makes_uploads_pending_until_another_one_is_there(service: RunningServe) -> None:
    pictures = [disc_jpeg(seed) for seed in range(10, 16)]
    with service.client() as client:
        (replica,) = service.replica_processes("Detector")
        replica.kill()
        answers = [client.post("/images/", files={"file": image_bytes}) for image_bytes in pictures]
        assert {answer.status_code for answer in answers} <= {201, 202}
        for image_bytes in pictures:
            wait_until(partial(is_done, client, image_bytes), timeout_s=60)
            assert client.get(f"/images/{image_id_of(image_bytes)}/content").content == image_bytes
