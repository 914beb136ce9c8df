"""Several ingress replicas on PostgreSQL and a bucket, taken apart under load: nothing lost, nothing doubled."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import psutil
import pytest

from circles.storage.database import Database
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.serving import RunningServe, running_serve
from tests.worlds import Place, World, opened_world

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(300)]

_REPLICAS = 3


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened_world("postgresql and s3") as world:
        yield world


@pytest.fixture(scope="module")
def place(world: World, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return world.new_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def service(world: World, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    variables = {
        "DATABASE_URL": place.database_url,
        "STORAGE_URL": place.storage_url,
        "INGRESS_REPLICAS": str(_REPLICAS),
        "DETECTOR": "dummy",
        "RECONCILE_PERIOD_S": "1",
        **world.variables,
    }
    with running_serve(tmp_path_factory.mktemp("serve"), **variables) as service:
        wait_until(lambda: len(service.replica_pids()["Ingress"]) == _REPLICAS)
        yield service


class Uploads:
    """Four clients that upload pictures of their own, one after the other, each until it is acknowledged."""

    def __init__(self, service: RunningServe, first_seed: int) -> None:
        self.acknowledged: list[bytes] = []
        self._service = service
        self._first_seed = first_seed
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._lanes = [self._pool.submit(self._upload, lane) for lane in range(4)]

    def end(self) -> None:
        """Lets each client have its last answer."""
        self._stop.set()
        for lane in self._lanes:
            lane.result(timeout=100)
        self._pool.shutdown()

    def _upload(self, lane: int) -> None:
        seed = self._first_seed + lane
        with self._service.client() as client:
            while not self._stop.is_set():
                image_bytes = disc_jpeg(seed)
                _until_acknowledged(client, image_bytes)
                self.acknowledged.append(image_bytes)
                seed += 4


def _until_acknowledged(client: httpx2.Client, image_bytes: bytes) -> int:
    """How it was."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            response = client.post("/images/", files={"file": image_bytes})
        except httpx2.TransportError:
            continue
        if response.status_code in (200, 201, 202):
            return response.status_code
        # HAProxy makes a plain 500 of its own 502, 503 and 504; the application's would be a problem document.
        is_haproxys = response.status_code == 500 and "problem" not in response.headers.get("Content-Type", "")
        assert is_haproxys or response.status_code in (429, 502, 503, 504), response.text
        time.sleep(0.2)
    raise AssertionError("not acknowledged within 90 s")


def assert_all_there(service: RunningServe, place: Place, pictures: list[bytes]) -> None:
    """Every acknowledged picture is there, done, byte for byte; and rows and files agree."""
    with service.client() as client:
        for image_bytes in pictures:
            path = f"/images/{hashlib.sha256(image_bytes).hexdigest()}"
            wait_until(partial(_is_done, client, path), timeout_s=60)
            assert client.get(f"{path}/content").content == image_bytes
    database = Database(place.database_url)
    records = list(database.walk())
    database.close()
    assert {record.storage_key for record in records} <= place.stored_keys()
    # The detector of these tests always finds three: more would be one picture's objects written twice.
    assert {len(record.objects) for record in records} == {3}


def _is_done(client: httpx2.Client, path: str) -> bool:
    try:
        response = client.get(path)
    except httpx2.TransportError:
        return False
    return response.status_code == 200 and response.json()["status"] == "done"


def test_same_bytes_at_the_same_instant_are_one_image(service: RunningServe, place: Place) -> None:
    clients = [service.client() for _ in range(12)]
    start = threading.Barrier(len(clients))

    def upload(client: httpx2.Client) -> int:
        client.get("/health")
        start.wait()
        return client.post("/images/", files={"file": disc_jpeg(1)}).status_code

    with ThreadPoolExecutor(len(clients)) as pool:
        statuses = sorted(pool.map(upload, clients))
    for client in clients:
        client.close()
    assert statuses == [*[200] * (len(clients) - 1), 201]
    assert_all_there(service, place, [disc_jpeg(1)])
    assert len({key for key in place.stored_keys() if not key.startswith("00/00.")}) == 1


def test_replicas_killed_one_after_the_other_lose_and_double_nothing(service: RunningServe, place: Place) -> None:
    uploads = Uploads(service, first_seed=1000)
    for _ in range(8):
        wait_until(lambda: service.replica_processes("Ingress") != [])
        with contextlib.suppress(psutil.NoSuchProcess):  # it went since
            service.replica_processes("Ingress")[0].kill()
        before = len(uploads.acknowledged)
        wait_until(lambda: len(uploads.acknowledged) >= before + 4, timeout_s=60)  # noqa: B023 - called at once
    wait_until(lambda: len(uploads.acknowledged) > 20, timeout_s=60)
    uploads.end()
    assert_all_there(service, place, uploads.acknowledged)
    wait_until(lambda: len(service.replica_pids()["Ingress"]) == _REPLICAS, timeout_s=60)


@pytest.mark.parametrize(
    ("take_away", "away_s"),
    [
        pytest.param(lambda world: world.database, 5, id="database crashed"),
        pytest.param(lambda world: world.bucket, 20, id="bucket away for 20 s"),
    ],
)
def test_parts_that_go_and_come_back_lose_nothing(
    service: RunningServe,
    world: World,
    place: Place,
    take_away: Callable[[World], object],
    away_s: float,
    request: pytest.FixtureRequest,
) -> None:
    server = world.database if take_away(world) is world.database else world.bucket
    assert server is not None
    uploads = Uploads(service, first_seed=10_000 if server is world.database else 20_000)
    wait_until(lambda: len(uploads.acknowledged) > 10)
    with service.client() as client:
        server.stop(at_once=True)
        try:
            wait_until(lambda: client.get("/ready").status_code == 503)
            assert client.get("/health").status_code == 200
            time.sleep(away_s)  # the length of the outage; nothing is waited for
        finally:
            server.start()
        before = len(uploads.acknowledged)
        wait_until(lambda: len(uploads.acknowledged) > before + 10, timeout_s=60)
        uploads.end()
        wait_until(lambda: client.get("/ready").status_code == 200)
    assert_all_there(service, place, uploads.acknowledged)
