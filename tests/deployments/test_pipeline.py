"""What becomes of uploads when the detector is slow, away, or stumbles; over HTTP, with detectors that obey."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from circles.errors import DataFolderLockedError
from circles.geometry import Circle
from circles.storage.folder import FolderStore
from circles.storage.images import SERVICE_KEY, new_key
from circles.storage.lock import LOCK_NAME
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg, draw_scene, encode
from tests.running import RunningApi, running_api, settings_in, wait_until

FOUND = ((Circle(90, 110, 40), 0.9), (Circle(220, 130, 50), 0.4), (Circle(20, 20, 10), 0.05))


@contextmanager
def service(folder: Path, detector: GatedDetector, **changes: Any) -> Iterator[RunningApi]:
    changes = {"detection_timeout_s": 30, "reconcile_period_s": 0.2, **changes}
    with running_api(settings_in(folder, **changes), detector) as api:
        yield api


def upload(api: RunningApi, image_bytes: bytes, **options: Any) -> httpx2.Response:
    return api.client.post("/images/", files={"file": image_bytes}, **options)


def status_of(api: RunningApi, response: httpx2.Response) -> str:
    return str(api.client.get(response.headers["Location"]).json()["status"])


def files_in(folder: Path) -> list[Path]:
    ours = (LOCK_NAME, SERVICE_KEY)
    return [path for path in (folder / "images").rglob("*") if path.is_file() and path.name not in ours]


def test_scores_floor_and_threshold(tmp_path: Path) -> None:
    """Below STORE_MIN_SCORE nothing is kept; below MIN_SCORE nothing is shown unless asked for."""
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), min_score=0.5) as api:
        body = upload(api, disc_jpeg(1)).json()
        assert body["detection"]["detector"] == {"name": "fixed", "version": "7"}
        assert [entry["score"] for entry in body["detection"]["detections"]] == [0.9]
        objects = api.client.get(f"/images/{body['image_id']}/objects?min_score=0").json()["objects"]
        assert [entry["score"] for entry in objects] == [0.9, 0.4]
        api.services.min_score = 0.3
        assert api.client.get(f"/images/{body['image_id']}").json()["detection"]["count"] == 2


@pytest.mark.parametrize("way", ["too slow", "absent"])
def test_detector_that_does_not_answer_means_pending_and_done_later(tmp_path: Path, way: str) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    with service(tmp_path, detector, min_score=0.3, detection_timeout_s=0.3) as api:
        if way == "absent":
            detector.is_absent = True
        else:
            detector.close_gate()
        response = upload(api, disc_jpeg(1))
        assert response.status_code == 202
        assert "Preference-Applied" not in response.headers
        assert response.json()["status"] == "pending"
        assert api.client.get(f"{response.headers['Location']}/annotated").status_code == 409
        assert upload(api, disc_jpeg(1)).status_code == 200
        detector.is_absent = False
        detector.open_gate()
        wait_until(lambda: status_of(api, response) == "done")
        assert api.client.get(response.headers["Location"]).json()["detection"]["count"] == 2


def test_pending_work_is_taken_up_at_the_next_start(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    detector.is_absent = True
    with service(tmp_path, detector) as api:
        response = upload(api, disc_jpeg(1))
        assert response.status_code == 202
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api:
        wait_until(lambda: status_of(api, response) == "done")


def test_broken_pixels_of_a_pending_picture_make_it_failed(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector())) as api:
        response = upload(api, disc_jpeg(1)[:-1500], headers={"Prefer": "respond-async"})
        assert response.status_code == 202
        wait_until(lambda: status_of(api, response) == "failed")
        body = api.client.get(response.headers["Location"]).json()
        assert "ends early" in body["error"]
        assert body["detection"] is None


def test_detecting_again_in_vain_keeps_what_was_known(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    with service(tmp_path, detector) as api:
        first = upload(api, disc_jpeg(1))
        detector.is_absent = True
        again = api.client.post(f"{first.headers['Location']}/detection")
        assert (again.status_code, again.json()["title"]) == (503, "Detector unavailable")
        assert api.client.get(first.headers["Location"]).json() == first.json()


def test_health_answers_while_the_database_is_locked(tmp_path: Path) -> None:
    """With more uploads waiting for the database than there are threads to wait in."""
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api, ThreadPoolExecutor(50) as pool:
        with api.services.database._writing():
            uploads = [pool.submit(upload, api, disc_jpeg(seed)) for seed in range(50)]
            wait_until(lambda: api.services.admission.in_flight >= 45)
            assert api.client.get("/health", timeout=3).status_code == 200
        assert {future.result().status_code for future in uploads} <= {201, 503}


def test_inference_that_stores_nothing_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api:
        blocked = threading.Event()
        monkeypatch.setattr(api.services.readiness, "_checks", {"storage": lambda: str(blocked.wait(30))})
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(api.client.get, "/ready")
            response = api.client.post(
                "/v1/models/circle-detector:predict",
                content=disc_jpeg(1),
                headers={"Content-Type": "image/jpeg"},
                timeout=3,
            )
            assert response.status_code == 200
            blocked.set()
            asking.result()


def test_picture_over_which_the_detector_stumbles_fails_alone(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND, fails_at_width=300))) as api:
        bad = upload(api, encode(draw_scene((), width=300).image))
        assert bad.status_code == 202
        assert upload(api, disc_jpeg(1)).status_code == 201
        wait_until(lambda: status_of(api, bad) == "failed")
        assert "stumbled" not in bad.text
        again = api.client.post(f"{bad.headers['Location']}/detection")
        assert (again.status_code, again.json()["title"]) == (500, "Detection failed")


def test_more_uploads_than_allowed_are_refused_quickly(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    with service(tmp_path, detector, max_in_flight=3) as api, ThreadPoolExecutor(3) as pool:
        detector.close_gate()
        waiting = [pool.submit(upload, api, disc_jpeg(seed)) for seed in range(3)]
        wait_until(lambda: detector.calls == 3)
        refused = upload(api, disc_jpeg(9))
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert api.client.get("/health").status_code == 200
        detector.open_gate()
        assert [future.result().status_code for future in waiting] == [201] * 3
        assert upload(api, disc_jpeg(9)).status_code == 201


def post_batch(api: RunningApi, count: int) -> httpx2.Response:
    files = [("files", (f"{seed}.jpg", disc_jpeg(seed))) for seed in range(count)]
    return api.client.post("/images/batch", files=files)


def test_a_batch_counts_as_what_it_works_on_at_once(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    with service(tmp_path, detector, max_in_flight=3) as api, ThreadPoolExecutor(2) as pool:
        detector.close_gate()
        single = pool.submit(upload, api, disc_jpeg(101))
        wait_until(lambda: detector.calls == 1)
        batch = pool.submit(post_batch, api, 6)
        wait_until(lambda: detector.calls == 3)
        assert upload(api, disc_jpeg(100)).status_code == 429
        detector.open_gate()
        assert {result["status"] for result in batch.result().json()["results"]} <= {201, 202}
        assert single.result().status_code in (201, 202)
        wait_until(lambda: api.services.admission.in_flight == 0)


def test_what_nobody_foresaw_in_one_file_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api:
        pipeline = api.services.pipeline
        upload_one = pipeline.upload

        async def stumble(image_bytes: bytes, filename: str | None, respond_async: bool) -> Any:
            if filename == "1.jpg":
                raise RuntimeError("nobody foresaw this")
            return await upload_one(image_bytes, filename, respond_async)

        monkeypatch.setattr(pipeline, "upload", stumble)
        results = post_batch(api, 3).json()["results"]
        assert [result["status"] for result in results] == [201, 500, 201]
        assert "nobody foresaw" not in str(results)


def test_full_backlog_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    detector.is_absent = True
    with service(tmp_path, detector, max_pending=2) as api:
        assert [upload(api, disc_jpeg(seed)).status_code for seed in range(2)] == [202, 202]
        for options in ({}, {"headers": {"Prefer": "respond-async"}}):
            refused = upload(api, disc_jpeg(9), **options)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
        assert len(files_in(tmp_path)) == 2
        detector.is_absent = False
        assert upload(api, disc_jpeg(9)).status_code == 201


@contextmanager
def posting(api: RunningApi, path: str, image_bytes: bytes) -> Iterator[None]:
    """A client that has sent a picture, and goes away without an answer when left."""
    address = urlsplit(api.url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image_bytes)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + image_bytes)
        yield


def test_client_that_goes_away_does_not_stop_its_upload(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    image_bytes = disc_jpeg(1)
    with service(tmp_path, detector) as api:
        detector.close_gate()
        with posting(api, "/images/", image_bytes):
            wait_until(lambda: detector.calls == 1)
        detector.open_gate()
        path = f"/images/{hashlib.sha256(image_bytes).hexdigest()}"
        wait_until(lambda: api.client.get(path).status_code == 200)
        assert api.client.get(path).json()["status"] == "done"


def test_what_nobody_would_read_is_not_inferred(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector(*FOUND))
    with service(tmp_path, detector, detection_timeout_s=60) as api:
        detector.close_gate()
        with posting(api, "/v1/models/circle-detector:predict", disc_jpeg(1)):
            wait_until(lambda: detector.calls == 1)
            assert api.services.admission.in_flight == 1
        wait_until(lambda: api.services.admission.in_flight == 0)


def test_client_that_stops_sending_is_told_and_gives_its_slot_back(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), max_in_flight=1, upload_timeout_s=0.5) as api:
        address = urlsplit(api.url)
        for content_type in ("image/jpeg", "multipart/form-data; boundary=x"):
            head = f"POST /images/ HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: 1000\r\n\r\n"
            with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
                connection.sendall(head.encode() + b"--x")
                assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
            assert upload(api, disc_jpeg(1)).status_code in (200, 201)


def test_another_database_on_the_same_files_is_refused(tmp_path: Path) -> None:
    """It would take the other's pictures for files that no row names."""
    detector = GatedDetector(FixedDetector())
    settings = settings_in(tmp_path, detection_timeout_s=0.1)
    other = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/elsewhere/db.sqlite3"})
    with service(tmp_path, detector), pytest.raises(DataFolderLockedError, match="images is in use"):
        running_api(other, detector).__enter__()


def test_client_that_takes_its_time_holds_no_more_than_what_it_sent(tmp_path: Path) -> None:
    """And gives that back when it goes away."""
    detector = GatedDetector(FixedDetector(*FOUND))
    with service(tmp_path, detector, max_in_flight=1, max_in_flight_bytes=50_000) as api:
        address = urlsplit(api.url)
        head = "POST /images/ HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99000\r\n\r\n"
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + bytes(20_000))
            assert upload(api, disc_jpeg(1)).status_code == 201
            connection.sendall(bytes(29_000))
            wait_until(lambda: upload(api, disc_jpeg(2)).status_code == 429)
        wait_until(lambda: upload(api, disc_jpeg(2)).status_code in (200, 201))


def test_one_upload_may_be_larger_than_what_many_may_be_together(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), max_in_flight_bytes=1) as api:
        assert upload(api, disc_jpeg(1)).status_code == 201


def test_full_disk_is_told_and_reading_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api:
        kept = upload(api, disc_jpeg(1))
        with monkeypatch.context() as patch:
            patch.setattr("circles.storage.folder.os.fsync", _raise_disk_full)
            refused = upload(api, disc_jpeg(2))
            assert (refused.status_code, refused.json()["title"]) == (507, "Storage full")
            assert api.client.get(f"{kept.headers['Location']}/content").content == disc_jpeg(1)
        assert upload(api, disc_jpeg(2)).status_code == 201
        assert len(files_in(tmp_path)) == 2


def _raise_disk_full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_ready_names_what_is_away(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector())
    detector.is_absent = True
    with service(tmp_path, detector) as api:
        response = api.client.get("/ready")
        assert response.status_code == 503
        assert response.json()["checks"] == {"database": "ok", "storage": "ok", "detector": "told to be absent"}
        assert api.client.get("/health").status_code == 200
        detector.is_absent = False
        wait_until(lambda: api.client.get("/ready").status_code == 200)


def test_replica_without_its_reconciler_is_unhealthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api:
        api.services.check_health()
        monkeypatch.setattr(api.services.book, "claim_pending", _stumble)
        api.services.reconciler.wake()
        wait_until(lambda: api.services.reconciling is not None and api.services.reconciling.done())
        with pytest.raises(RuntimeError, match="reconciler has ended"):
            api.services.check_health()


def _stumble(*_: object) -> None:
    raise ZeroDivisionError


def test_orphaned_files_go_after_their_grace(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "images")
    store.save(new_key("ab" * 32), b"left behind by a crash", "image/png")
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), orphan_grace_s=0) as api:
        wait_until(lambda: not files_in(tmp_path))
        assert upload(api, disc_jpeg(1)).status_code == 201


def test_images_go_when_their_time_is_over(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), retention_days=1) as api:
        kept = upload(api, disc_jpeg(1)).headers["Location"]
        assert api.client.get(kept).status_code == 200
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), retention_days=1e-9) as api:
        wait_until(lambda: api.client.get(kept).status_code == 404)
        wait_until(lambda: not files_in(tmp_path))


def test_database_that_is_away_is_503(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND))) as api:
        with api.services.database._writing() as connection:
            connection.exec_driver_sql("DROP TABLE objects")
            connection.exec_driver_sql("DROP TABLE images")
        response = api.client.get("/images/")
        assert (response.status_code, response.json()["title"]) == (503, "Database unavailable")
        assert response.headers["Retry-After"]
        assert api.client.get("/ready").status_code == 503


def test_keys_are_wanted_when_set(tmp_path: Path) -> None:
    with service(tmp_path, GatedDetector(FixedDetector(*FOUND)), api_keys="alpha,beta") as api:
        for path in ("/health", "/ready", "/", "/docs", "/openapi.json", "/static/docs/swagger-ui-bundle.js"):
            assert api.client.get(path).status_code in (200, 307)
        for path in ("/images/", "/config", "/api/v1/images", "/nope", "/health/x", "/static/docs/x"):
            refused = api.client.get(path)
            assert (refused.status_code, refused.json()["title"]) == (401, "Unauthorized")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert upload(api, disc_jpeg(1)).status_code == 401
        for headers in ({"X-API-Key": "alpha"}, {"Authorization": "Bearer beta"}):
            assert api.client.get("/images/", headers=headers).status_code == 200
        for headers in ({"X-API-Key": "alph"}, {"Authorization": "Basic beta"}, {"X-API-Key": "alpha,beta"}):
            assert api.client.get("/images/", headers=headers).status_code == 401
        assert api.client.get("/config", headers={"X-API-Key": "alpha"}).json().get("api_keys") is None


def test_unforeseen_error_is_one_log_line_and_no_traceback_for_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(_: str) -> None:
        raise ZeroDivisionError("secret inner workings")

    with service(tmp_path, GatedDetector(FixedDetector())) as api:
        monkeypatch.setattr(api.services.book, "get", stumble)
        response = api.client.get("/images/abc")
    assert (response.status_code, response.headers["Content-Type"]) == (500, "application/problem+json")
    assert "secret" not in response.text
    lines = [record for record in caplog.records if response.json()["request_id"] in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].exc_info is not None


def test_a_second_service_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    # It waits as long as the first one may take to go; here that is short.
    second = service(tmp_path, GatedDetector(FixedDetector()), detection_timeout_s=0.3)
    with (
        service(tmp_path, GatedDetector(FixedDetector())),
        pytest.raises(DataFolderLockedError, match='"holder": "a test"'),
    ):
        second.__enter__()
