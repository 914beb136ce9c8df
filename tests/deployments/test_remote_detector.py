"""Detecting through an endpoint elsewhere: its protocol, its moods, and what an upload has of them."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from circles.detection import DetectorInfo, ImageDetections
from circles.detectors.encoded import open_detector
from circles.errors import BrokenImageError, CirclesError, DetectionFailedError, DetectorUnavailableError
from circles.geometry import BBox, Circle
from circles.settings import Settings
from deployments.kserve_model import CircleModel
from deployments.model_server import create_model_server
from deployments.remote_detector import RemoteDetector
from serve_app.processes import free_port
from tests.endpoints import TEMPLATE_OBJECT, ScriptedEndpoint
from tests.pictures import disc_jpeg, draw_scene, encode
from tests.protocols.clients import rows_of
from tests.running import running_api, running_app, settings_in, wait_until

T = TypeVar("T")


def with_detector(url: str, work: Callable[[RemoteDetector], Coroutine[Any, Any, T]], **changes: Any) -> T:
    """What the work returns, done with a detector that is closed afterwards."""

    async def run() -> T:
        detector = RemoteDetector(Settings(model_server_url=url, **changes))
        try:
            return await work(detector)
        finally:
            await detector.close()

    return asyncio.run(run())


def detect(url: str, image_bytes: bytes, **changes: Any) -> ImageDetections:
    return with_detector(url, lambda detector: detector.detect(image_bytes), **changes)


def failure(url: str, image_bytes: bytes = disc_jpeg(1), **changes: Any) -> CirclesError:
    with pytest.raises(CirclesError) as raised:
        detect(url, image_bytes, **changes)
    return raised.value


@contextmanager
def our_server(*, has_binary: bool = True) -> Iterator[str]:
    model = CircleModel(Settings())
    model.load()
    if not has_binary:
        model.extensions = []
    with running_app(create_model_server(model, f"127.0.0.1:{free_port()}")) as url:
        yield url


@contextmanager
def scripted(*script: Callable[[], Response]) -> Iterator[tuple[ScriptedEndpoint, str]]:
    endpoint = ScriptedEndpoint(*script)
    with running_app(endpoint.app) as url:
        yield endpoint, url


def answer(status: int, content: Any = None, **headers: str) -> Callable[[], Response]:
    return lambda: JSONResponse(content, status, {key.replace("_", "-"): value for key, value in headers.items()})


@pytest.mark.parametrize("has_binary", [True, False], ids=["V2 binary", "V1"])
def test_answers_are_those_of_the_detector(has_binary: bool) -> None:
    """Down to the floor: what is kept is what the detector in this place would have kept."""
    image_bytes = encode(draw_scene((Circle(90, 110, 40), Circle(200, 60, 6), Circle(250, 200, 5))).image)
    (expected,) = open_detector(Settings()).detect([image_bytes])
    assert isinstance(expected, ImageDetections)
    with our_server(has_binary=has_binary) as url:
        found = detect(url, image_bytes)
    assert (found.width, found.height) == (expected.width, expected.height)
    version = expected.detector.version if has_binary else "unknown"
    assert found.detector == DetectorInfo("circle-detector", version)
    rows = rows_of(expected.detections)
    np.testing.assert_array_equal(rows_of(found.detections), rows.astype(np.float32) if has_binary else rows)
    assert rows[:, 7].min() < Settings().default_min_score < rows[:, 7].max()


def test_kserves_stock_server_with_the_templates_answers() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "tests.endpoints", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: _is_up(f"{url}/v1/models/coin-detector"), timeout_s=60)
            found = detect(url, disc_jpeg(1), model_name="coin-detector")
        finally:
            server.terminate()
    (only,) = found.detections
    assert (only.circle, only.bbox) == (Circle(60, 70, 50), BBox(10, 20, 110, 120))
    assert (only.label, only.score, found.detector) == ("coin", 0.75, DetectorInfo("coin-detector", "unknown"))


def _is_up(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def test_one_connection_serves_many_pictures() -> None:
    async def detect_ten(detector: RemoteDetector) -> None:
        for seed in range(10):
            await detector.detect(disc_jpeg(seed))

    with scripted() as (endpoint, url):
        with_detector(url, detect_ten, store_min_score=0.25)
    assert len(endpoint.ports) == 1
    assert len(endpoint.predictions) == 10
    assert endpoint.predictions[0]["parameters"] == {"min_score": 0.25}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 520])
def test_passing_failures_are_tried_again(status: int) -> None:
    with scripted(answer(status), answer(status)) as (endpoint, url):
        assert len(detect(url, disc_jpeg(1)).detections) == 1
    assert len(endpoint.predictions) == 3


def test_server_says_when_to_try_again() -> None:
    with scripted(answer(503, Retry_After="1")) as (_, url):
        start = time.monotonic()
        detect(url, disc_jpeg(1))
        assert time.monotonic() - start >= 1


def test_nobody_sleeps_through_a_long_pause() -> None:
    """An upload is pending instead, and asks again when nobody waits."""
    with scripted(answer(503, Retry_After="3600")) as (endpoint, url):
        assert isinstance(failure(url), DetectorUnavailableError)
    assert len(endpoint.predictions) == 1


def test_tries_come_to_an_end() -> None:
    with scripted(*[answer(503, {"error": "busy"})] * 9) as (endpoint, url):
        error = failure(url)
    assert isinstance(error, DetectorUnavailableError)
    assert "refused with 503" in error.detail
    assert len(endpoint.predictions) == 3


@pytest.mark.parametrize("status", [301, 308, 401, 403, 404, 408, 415])
def test_endpoint_that_is_set_up_otherwise_is_no_fault_of_the_picture(status: int) -> None:
    with scripted(*[answer(status)] * 3) as (endpoint, url):
        assert isinstance(failure(url), DetectorUnavailableError)
    assert len(endpoint.predictions) == 1


def test_refused_picture_is_looked_at_here() -> None:
    """Endpoints have no common word for a broken picture."""
    with scripted(answer(400), answer(400)) as (_, url):
        assert isinstance(failure(url, disc_jpeg(1)[:-2000]), BrokenImageError)
        assert isinstance(failure(url), DetectionFailedError)
    with our_server() as url:
        assert isinstance(failure(url, disc_jpeg(1)[:-2000]), BrokenImageError)


def test_only_a_detectors_own_500_speaks_of_the_picture() -> None:
    """Serve and HAProxy answer 500 as well, while what is behind them restarts."""
    with scripted(*[answer(500, {"error": "it stumbled"})] * 3) as (_, url):
        assert isinstance(failure(url), DetectionFailedError)
    for content in ("Internal Server Error", None, ["error"]):
        with scripted(*[answer(500, content)] * 3) as (endpoint, url):
            assert isinstance(failure(url), DetectorUnavailableError)
        assert len(endpoint.predictions) == 3


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"predictions": 7},
        {"predictions": [7]},
        {"predictions": [{**TEMPLATE_OBJECT, "score": 2}]},
        {"predictions": [{**TEMPLATE_OBJECT, "radius": {"radius": -1}}]},
        {"predictions": [{**TEMPLATE_OBJECT, "centroid": {"x": "NaN", "y": 1}}]},
        {"predictions": [TEMPLATE_OBJECT] * 200_000},
    ],
)
def test_answers_that_are_no_detections_are_not_taken_for_some(content: Any) -> None:
    with scripted(answer(200, content)) as (_, url):
        error = failure(url)
    assert isinstance(error, DetectorUnavailableError)
    assert "something else than detections" in error.detail


def test_objects_outside_the_picture_are_left_out() -> None:
    beside = {**TEMPLATE_OBJECT, "bounding_box": {"xmin": 400, "ymin": 0, "xmax": 500, "ymax": 100}}
    across = {**TEMPLATE_OBJECT, "bounding_box": {"xmin": 300, "ymin": 200, "xmax": 400, "ymax": 300}, "score": 0.9}
    with scripted(answer(200, {"predictions": [TEMPLATE_OBJECT, beside, across]})) as (_, url):
        found = detect(url, disc_jpeg(1)).detections
    assert [each.bbox for each in found] == [BBox(300, 200, 320, 240), BBox(10, 20, 110, 120)]


def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = failure(url)
    assert isinstance(error, DetectorUnavailableError)
    assert url in error.detail
    with pytest.raises(DetectorUnavailableError, match="cannot be reached"):
        RemoteDetector(Settings(model_server_url=url)).state()


def test_nobody_waits_without_limit() -> None:
    with scripted() as (endpoint, url):
        endpoint.delays_s.append(10)
        start = time.monotonic()
        error = failure(url, model_server_timeout_s=0.5)
        assert time.monotonic() - start < 10
    assert isinstance(error, DetectorUnavailableError)
    assert "within 0.5 s" in error.detail


def test_asking_for_its_state_wakes_nobody() -> None:
    with scripted() as (endpoint, url):
        assert RemoteDetector(Settings(model_server_url=url)).state() == "ok"
    assert endpoint.requests == 0


def test_endpoint_may_change_its_protocol_while_we_run() -> None:
    """Such as after an update of the server; one request finds out."""

    async def detect_through_a_change(detector: RemoteDetector) -> list[str]:
        with running_app(_our_app(), port):
            versions = [(await detector.detect(disc_jpeg(1))).detector.version]
        with running_app(ScriptedEndpoint().app, port):
            with pytest.raises(DetectorUnavailableError, match="refused with 404"):
                await detector.detect(disc_jpeg(1))
            return [*versions, (await detector.detect(disc_jpeg(1))).detector.version]

    port = free_port()
    assert with_detector(f"http://127.0.0.1:{port}", detect_through_a_change) == ["1", "unknown"]


def _our_app() -> FastAPI:
    model = CircleModel(Settings(mode="dummy"))
    model.load()
    return create_model_server(model, f"127.0.0.1:{free_port()}")


def test_upload_is_pending_while_the_endpoint_is_away_and_done_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    settings = settings_in(
        tmp_path,
        model_server_url=f"http://127.0.0.1:{port}",
        detection_timeout_s=5,
        reconcile_period_s=0.3,
        min_score=0.1,
    )
    with running_api(settings, RemoteDetector(settings)) as api:
        response = api.client.post("/images/", files={"file": disc_jpeg(1)})
        assert response.status_code == 202
        assert api.client.get("/ready").status_code == 503
        assert api.client.post(f"{response.headers['Location']}/detection").status_code == 503
        with running_app(ScriptedEndpoint().app, port):
            wait_until(lambda: api.client.get(response.headers["Location"]).json()["status"] == "done")
            wait_until(lambda: api.client.get("/ready").status_code == 200)
            assert api.client.post("/images/", files={"file": disc_jpeg(2)}).status_code == 201
        detection = api.client.get(response.headers["Location"]).json()["detection"]
        assert detection["detector"] == {"name": "circle-detector", "version": "unknown"}
        assert [each["label"] for each in detection["detections"]] == ["coin"]


def test_endpoint_that_starts_from_zero_gets_the_patience_that_uploads_do_not(tmp_path: Path) -> None:
    with scripted() as (endpoint, url):
        endpoint.delays_s.extend([5, 5])
        settings = settings_in(
            tmp_path, model_server_url=url, detection_timeout_s=1, model_server_timeout_s=20, min_score=0.1
        )
        with running_api(settings, RemoteDetector(settings)) as api:
            response = api.client.post("/images/", files={"file": disc_jpeg(1)})
            assert response.status_code == 202
            wait_until(lambda: api.client.get(response.headers["Location"]).json()["status"] == "done")
    assert len(endpoint.predictions) == 2
