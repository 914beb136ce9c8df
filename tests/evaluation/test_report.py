"""The report and its command line: true, whole, and legible in a browser."""

import csv
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from playwright.sync_api import Browser

from circles.detectors import load_detector
from circles.detectors.encoded import EncodedDetector
from deployments.async_detectors import InProcessDetector
from evaluation.__main__ import _SceneKind
from evaluation.coco import load_dataset, read_predictions, write_scenes
from evaluation.scenes import PLAIN, SceneOptions, draw_scene
from evaluation.scores import ImageResult, score
from evaluation.summary import HEADLINE, as_json
from serve_app.processes import free_port
from tests.running import running_api, settings_in

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of drawn scenes, easy and hard ones."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    options = SceneOptions(width=256, height=192)
    easy = (draw_scene(seed, PLAIN) for seed in range(3))
    hard = (draw_scene(seed, options) for seed in range(9))
    write_scenes(folder, [*easy, *hard])
    return folder


def evaluate(*arguments: str | Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [sys.executable, "-m", "evaluation", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert process.returncode == expected, process.stdout + process.stderr
    return process


@pytest.fixture(scope="session")
def report(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on it."""
    output = tmp_path_factory.mktemp("report")
    process = evaluate("--dataset", scenes, "--detector", "hough", "--output", output)
    assert "F1 at IoU 0.5" in process.stdout
    return output


def metrics_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return content


def test_numbers_follow_from_the_predictions_alone(report: Path, scenes: Path) -> None:
    metrics = metrics_of(report)
    predictions = read_predictions(report / "predictions.coco.json")
    results = [ImageResult(image, predictions.get(image.image_id, ()), 0.0) for image in load_dataset(scenes).images]
    again = as_json(score(results, metrics["min_score"]), {})
    timeless = {key: value for key, value in again.items() if key != "seconds"}
    assert timeless == {key: metrics[key] for key in timeless}
    assert 0.5 < metrics["f1_50"] < 1


def test_every_picture_has_its_line_and_its_drawing(report: Path, scenes: Path) -> None:
    metrics, images = metrics_of(report), load_dataset(scenes).images
    with (report / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image_id"]) for row in rows] == [image.image_id for image in images]
    assert sum(int(row["right"]) for row in rows) == metrics["at_iou"]["0.5"]["true_positives"]
    assert sum(float(row["jaccard"]) for row in rows) / len(rows) == pytest.approx(metrics["jaccard"], abs=1e-5)
    assert len(list((report / "annotated").glob("*.jpg"))) == len(images)


def test_metrics_keys_are_documented(report: Path) -> None:
    text = (ROOT / "evaluation" / "README.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_0-9]+)`", text, re.MULTILINE))
    assert documented == set(metrics_of(report))


def test_report_is_legible_in_a_browser(report: Path, browser: Browser) -> None:
    """One file: nothing is fetched; the table, the curves and the pictures are there, worst first."""
    page = browser.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto((report / "report.html").as_uri())
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
    assert page.locator("#headline tbody tr").count() == len(HEADLINE)
    charts = page.locator(".charts figure svg")
    assert charts.count() == 5
    for index in range(5):
        box = charts.nth(index).bounding_box()
        assert box is not None
        assert box["height"] > 100
    assert page.locator(".charts svg").first.locator("path").count() > 10
    pictures = page.locator(".gallery img")
    assert pictures.count() == 12
    pictures.last.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    captions = page.locator(".gallery figcaption").all_inner_texts()
    jaccards = [float(caption.rpartition("Jaccard ")[2]) for caption in captions]
    assert jaccards[0] < jaccards[-1]
    assert re.search(r"[1-9]\d* (wrong|missed)", captions[0])


def test_a_run_is_compared_with_an_earlier_one(report: Path, scenes: Path, tmp_path: Path) -> None:
    process = evaluate(
        "--dataset", scenes, "--detector", "dummy", "--output", tmp_path, "--compare", report / "metrics.json"
    )
    assert "difference to" in process.stdout
    page = (tmp_path / "report.html").read_text()
    drop = metrics_of(tmp_path)["f1_50"] - metrics_of(report)["f1_50"]
    assert f"{drop:+.4g}" in page


def test_an_earlier_run_is_compared_on_what_it_judged(report: Path, scenes: Path, tmp_path: Path) -> None:
    """A run that was stopped early says nothing of the pictures it never saw."""
    earlier = tmp_path / "earlier"
    shutil.copytree(report, earlier)
    lines = (earlier / "per_image.csv").read_text().splitlines(keepends=True)
    (earlier / "per_image.csv").write_text("".join(lines[:4]))
    arguments: list[str | Path] = [
        "--dataset",
        scenes,
        "--detector",
        "hough",
        "--output",
        tmp_path / "new",
        "--compare",
    ]
    evaluate(*arguments, earlier / "metrics.json")
    page = (tmp_path / "new" / "report.html").read_text()
    assert "difference to earlier (3 pictures)" in page
    assert page.count('<td class="number">+0</td>') >= 5
    (earlier / "per_image.csv").write_text(lines[0])
    refused = evaluate(*arguments, earlier / "metrics.json", expected=1)
    assert "no picture in common" in refused.stderr


def test_several_processes_find_the_same(report: Path, scenes: Path, tmp_path: Path) -> None:
    evaluate("--dataset", scenes, "--detector", "hough", "--output", tmp_path, "--jobs", "2")
    assert read_predictions(tmp_path / "predictions.coco.json") == read_predictions(report / "predictions.coco.json")


@pytest.mark.serve
@pytest.mark.control
def test_a_ray_cluster_finds_the_same(report: Path, scenes: Path, tmp_path: Path) -> None:
    evaluate("--dataset", scenes, "--detector", "hough", "--output", tmp_path, "--ray", "local")
    assert read_predictions(tmp_path / "predictions.coco.json") == read_predictions(report / "predictions.coco.json")


def test_thresholds_are_those_asked_for(scenes: Path, tmp_path: Path) -> None:
    for number, arguments in enumerate((["--iou", "0.4", "0.6"], ["--iou", "0.4", "--iou", "0.6"])):
        evaluate("--dataset", scenes, "--detector", "dummy", "--output", tmp_path / str(number), *arguments)
        assert set(metrics_of(tmp_path / str(number))["at_iou"]) == {"0.4", "0.5", "0.6", "0.75"}


def test_scenes_are_drawn_where_there_is_no_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = importlib.import_module("evaluation.__main__")
    monkeypatch.setattr(command, "_DATASETS", ())
    monkeypatch.setattr(command, "_OUTPUT", tmp_path)
    monkeypatch.setattr(command, "_SCENE_COUNT", 2)
    dataset = command._dataset(None, is_strict=False)
    assert (dataset.name, len(dataset.images)) == ("drawn-scenes", 2)
    assert all(image.path.is_file() for image in dataset.images)


@pytest.mark.parametrize("kind", get_args(_SceneKind))
def test_scenes_are_of_the_kind_asked_for(kind: _SceneKind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command_line = importlib.import_module("evaluation.__main__")
    monkeypatch.setattr(command_line, "_OUTPUT", tmp_path)
    dataset = command_line._drawn_scenes(6, kind)
    truth = [(each.bbox, image) for image in dataset.images for each in image.truth]
    cut = [bbox for bbox, image in truth if bbox.margin(image.width, image.height) <= 0]
    assert len(dataset.images) == 6
    assert (bool(truth), bool(cut)) == {
        "scenes": (True, True),
        "whole-scenes": (True, False),
        "clutter": (False, False),
    }[kind]


@pytest.mark.parametrize("arguments", [("--only-whole",), ("--scenes", "2", "--only-whole", "--only-clutter")], ids=str)
def test_scene_options_that_do_not_fit_are_refused(arguments: tuple[str, ...]) -> None:
    assert "--only-clutter" in evaluate(*arguments, expected=2).stderr


def test_over_http_the_detections_are_the_same(report: Path, scenes: Path, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, api_keys="secret", detector="hough")
    encoded = EncodedDetector(load_detector("hough"), settings.max_image_pixels, settings.store_min_score)
    with running_api(settings, InProcessDetector(encoded)) as api:
        refused = evaluate("--dataset", scenes, "--url", api.url, "--output", tmp_path / "refused", expected=1)
        assert "401" in refused.stderr
        process = subprocess.run(
            [sys.executable, "-m", "evaluation", "--dataset", scenes, "--url", api.url, "--output", tmp_path / "http"],
            cwd=ROOT,
            env={"API_KEY": "secret", "PATH": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        assert api.client.get("/images/", headers={"X-API-Key": "secret"}).json()["items"] == []
    http, in_process = metrics_of(tmp_path / "http"), metrics_of(report)
    assert read_predictions(tmp_path / "http" / "predictions.coco.json") == read_predictions(
        report / "predictions.coco.json"
    )
    for key, _ in HEADLINE:
        assert http[key] == in_process[key]


@pytest.fixture
def dying_service() -> Iterator[str]:
    """Answers a configuration, an upload, another one at its third try, and then, from its removal on, refuses all."""
    uploads = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            config = {"mode": "real", "detector": "hough", "detector_threads": 1, "min_score": 0.3}
            self._send(*((200, config) if self.path.startswith("/config") else (404, {})))

        def do_DELETE(self) -> None:
            self._send(*((204, None) if uploads == 1 else (502, {})))

        def do_POST(self) -> None:
            nonlocal uploads
            self.rfile.read(int(self.headers["Content-Length"]))
            uploads += 1
            found: dict[str, Any] = {"detection": {"detections": []}, "status": "done", "error": None}
            self._send(*((201, found) if uploads in {1, 4} else (502, {"detail": "gone"})))

        def _send(self, status: int, body: object) -> None:
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_service_that_dies_midway_is_not_scored_as_zero(dying_service: str, scenes: Path, tmp_path: Path) -> None:
    process = evaluate("--dataset", scenes, "--url", dying_service, "--output", tmp_path, expected=2)
    metrics = metrics_of(tmp_path)
    assert metrics["images"] == 2
    assert len(metrics["left_out"]) == 10
    assert "the service answered 502" in process.stdout
    assert "stays at the service" in process.stderr
    assert "the service answered 502" in (tmp_path / "report.html").read_text()


def test_service_that_is_not_there(scenes: Path, tmp_path: Path) -> None:
    process = evaluate("--dataset", scenes, "--url", f"http://127.0.0.1:{free_port()}", expected=1)
    assert "error:" in process.stderr


def test_bad_pictures_are_left_out_or_stop_a_strict_run(scenes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy)
    (copy / "scene_00001.jpg").write_bytes(b"no picture any more")
    process = evaluate("--dataset", copy, "--detector", "dummy", "--output", tmp_path / "out")
    assert "scene_00001.jpg" in process.stdout
    assert metrics_of(tmp_path / "out")["images"] == 11
    assert "scene_00001.jpg" in (tmp_path / "out" / "report.html").read_text()
    strict = evaluate("--dataset", copy, "--detector", "dummy", "--strict", expected=1)
    assert "scene_00001.jpg" in strict.stderr


def test_ctrl_c_keeps_what_was_done(tmp_path: Path) -> None:
    many = tmp_path / "many"
    large = SceneOptions(width=1600, height=1200)
    first = draw_scene(0, large)
    write_scenes(many, [first] * 60)
    with subprocess.Popen(
        [sys.executable, "-m", "evaluation", "--dataset", many, "--detector", "hough", "--output", tmp_path / "out"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("detected in" in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "interrupted after" in rest
    assert 0 < metrics_of(tmp_path / "out")["images"] < 60
    assert "Stopped before its end" in (tmp_path / "out" / "report.html").read_text()
