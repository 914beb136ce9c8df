"""A real Serve, taken apart while it works: what was acknowledged stays."""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import httpx2
import numpy as np
import pytest
import yaml

from circles.geometry import BBox
from deployments.spare_worker import IDLE_TITLE
from evaluation.coco import load_dataset
from evaluation.metrics import Counts, count_matches
from serve_app.processes import LocalServiceError
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    # Patience for the largest picture, and less than that of a client.
    settings = {"DETECTOR_MAX_REPLICAS": "1", "DETECTION_TIMEOUT_S": "40"}
    with running_serve(tmp_path_factory.mktemp("serve"), **settings) as service:
        yield service


@pytest.fixture
def client(service: RunningServe) -> Iterator[httpx2.Client]:
    with service.client() as client:
        yield client


def large_jpeg(seed: int, min_bytes: int = 0, size: tuple[int, int] = (1800, 1200)) -> bytes:
    """A picture of noise: it keeps a detector busy for most of a second, and more where it is larger."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8), size)
    for quality in (80, 97, 99, 100):
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(encoded) >= min_bytes:
            return encoded
    raise AssertionError(f"no quality gives {min_bytes} bytes")


def ingress_log(service: RunningServe) -> str:
    """What the ingress replica wrote into its own log file."""
    (process,) = service.replica_processes("Ingress")
    paths = {file.path for file in process.open_files() if "replica_circles_Ingress" in file.path}
    return "".join(Path(path).read_text() for path in paths)


def spare_workers(service: RunningServe) -> list[int]:
    """The ids of processes that Ray keeps for whatever comes."""
    return [process.pid for process, command in service.local.commands() if command[0] == IDLE_TITLE]


def is_ready(client: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return client.get("/ready").status_code == 200
    return False


def assert_kept(client: httpx2.Client, pictures: list[bytes]) -> None:
    """Every picture is there, byte for byte, and detected in."""
    for image_bytes in pictures:
        path = f"/images/{hashlib.sha256(image_bytes).hexdigest()}"
        wait_until(partial(_is_done, client, path), timeout_s=60)
        assert client.get(f"{path}/content").content == image_bytes


def _is_done(client: httpx2.Client, path: str) -> bool:
    return bool(client.get(path).json()["status"] == "done")


def _has_min_score(client: httpx2.Client, min_score: float) -> bool:
    return bool(client.get("/config").json()["min_score"] == min_score)


def test_killed_detector_loses_no_upload_of_its_batch(service: RunningServe, client: httpx2.Client) -> None:
    """SIGKILL while the replica computes on uploads: they are tried again, or pending and then done."""
    pictures = [large_jpeg(seed) for seed in range(6)]
    (detector,) = service.replica_processes("Detector")
    (process,) = detector.children()  # that it computes in
    with ThreadPoolExecutor(len(pictures)) as pool:
        busy_before_s = process.cpu_times().user
        uploads = [pool.submit(client.post, "/images/", files={"file": picture}) for picture in pictures]
        wait_until(lambda: process.cpu_times().user - busy_before_s > 0.3)
        detector.kill()
        responses = [upload.result() for upload in uploads]
    assert {response.status_code for response in responses} <= {201, 202}
    # It did happen: uploads had been with the killed replica.
    assert "detection is tried once more" in ingress_log(service)
    wait_until(lambda: detector.pid not in [process.pid for process in service.replica_processes("Detector")])
    assert_kept(client, pictures)


def test_spare_worker_becomes_the_next_replica_and_is_replaced(service: RunningServe, client: httpx2.Client) -> None:
    wait_until(lambda: len(spare_workers(service)) == 1)
    (spare,), (ingress,) = spare_workers(service), service.replica_processes("Ingress")
    ingress.kill()
    wait_until(lambda: [process.pid for process in service.replica_processes("Ingress")] == [spare])
    wait_until(lambda: len(spare_workers(service)) == 1)
    wait_until(lambda: is_ready(client))


def test_large_photograph_goes_through_the_fast_path(client: httpx2.Client) -> None:
    image_bytes = large_jpeg(99, min_bytes=20_000_000, size=(6000, 4000))
    assert 20_000_000 <= len(image_bytes) <= 25 * 2**20
    response = client.post("/images/", files={"file": image_bytes})
    assert response.status_code == 201
    assert client.get(f"{response.headers['Location']}/content").content == image_bytes


def test_held_out_photographs_over_http(service: RunningServe, client: httpx2.Client, coins_val: Path) -> None:
    """Every one is 201 with matching boxes, F1 at least 0.85; the second time 200 with the same objects."""
    counts = Counts()
    first_bodies = []
    dataset = load_dataset(coins_val).images
    for annotated in dataset:
        response = client.post("/images/", files={"file": annotated.path.read_bytes()})
        assert response.status_code == 201
        first_bodies.append(response.json())
    for annotated, body in zip(dataset, first_bodies, strict=True):
        response = client.post("/images/", files={"file": annotated.path.read_bytes()})
        assert (response.status_code, response.json()) == (200, body)
        bboxes = [BBox(*entry["bbox"]) for entry in body["detection"]["detections"]]
        counts += count_matches(bboxes, [truth.bbox for truth in annotated.truth], min_iou=0.5)
    assert counts.f1 >= 0.85


def test_min_score_reaches_running_replicas_without_a_restart(service: RunningServe, client: httpx2.Client) -> None:
    location = client.post("/images/", files={"file": disc_jpeg(50)}).headers["Location"]
    before = service.replica_pids()
    config_path = service.local.config_path
    config = yaml.safe_load(config_path.read_text())
    for min_score, count in ((1.0, None), (0.2, 2)):
        config["applications"][0]["deployments"][0]["user_config"]["min_score"] = min_score
        service.deploy(config)
        wait_until(partial(_has_min_score, client, min_score))
        body = client.get(location).json()
        assert body["detection"]["min_score"] == min_score
        assert count is None or body["detection"]["count"] == count
    assert service.replica_pids() == before


def test_second_service_on_the_same_folder_refuses_and_names_the_holder(service: RunningServe, tmp_path: Path) -> None:
    (holder,) = service.replica_processes("Ingress")
    # The second waits as long as a replica may take to go; here that is short.
    folder = {key: service.environment[key] for key in ("DATABASE_URL", "STORAGE_URL")} | {"DETECTION_TIMEOUT_S": "1"}
    refusal = pytest.raises(LocalServiceError, match=rf'in use by .*"pid": {holder.pid}')
    with refusal, running_serve(tmp_path, **folder):
        pass
    with service.client() as client:
        assert client.get("/ready").status_code == 200


def test_a_sleeping_detector_is_ready_and_woken_by_an_upload(tmp_path: Path) -> None:
    """Without the fast path's variables, too: Serve's own proxy in front."""
    sleeping = {"DETECTOR_MIN_REPLICAS": "0"}
    python_proxy = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    with running_serve(tmp_path, **sleeping, **python_proxy) as service, service.client() as client:
        assert client.get("/ready").json()["checks"]["detector"] == "asleep"
        assert service.replica_processes("Detector") == []
        with ThreadPoolExecutor(1) as pool, service.client() as other:
            uploading = pool.submit(other.post, "/images/", files={"file": disc_jpeg(1)})
            while not uploading.done():
                assert client.get("/ready").status_code == 200  # also while it wakes up
            assert uploading.result().status_code in (201, 202)
        assert_kept(client, [disc_jpeg(1)])
        assert len(service.replica_processes("Detector")) == 1
