"""``python -m circles``: detections without any service."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from circles.detection import Detection
from circles.drawing import draw_detections
from circles.geometry import BBox, Circle
from circles.imaging import decode_image
from tests.pictures import disc_jpeg, two_discs


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "circles", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_detections_are_printed_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(disc_jpeg(1))
    process = run(tmp_path / "photo.jpg", "-o", tmp_path / "out.jpg")
    assert process.returncode == 0, process.stderr
    printed = json.loads(process.stdout)
    assert printed["file"] == str(tmp_path / "photo.jpg")
    circles = sorted((entry["centroid"]["x"], entry["radius"]) for entry in printed["detections"])
    np.testing.assert_allclose(circles, [(90.3, 42), (220.5, 55.5)], atol=1.5)
    drawn = decode_image((tmp_path / "out.jpg").read_bytes(), 10**6)
    assert np.abs(drawn.astype(int) - two_discs(1).image).max() > 100


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(disc_jpeg(1))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    process = run(tmp_path / "bad.jpg", tmp_path / "good.jpg", "--detector", "dummy", "--min-score", "0.92")
    assert process.returncode == 1
    assert "bad.jpg: these bytes are not a picture" in process.stderr
    assert len(json.loads(process.stdout)["detections"]) == 1


@pytest.mark.parametrize("arguments", [["--detector", "owl"], ["-o", "x.jpg"]], ids=["detector", "output of two"])
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(disc_jpeg(1))
    assert run(tmp_path / "a.jpg", tmp_path / "a.jpg", *arguments).returncode == 2


def test_drawing_lies_on_the_circle_and_leaves_the_picture_alone() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    image.setflags(write=False)
    circle = Circle(150.5, 100.5, 60)
    drawn = draw_detections(image, [Detection(circle, BBox(90, 40, 211, 161), 0.9)])
    assert np.all(image == 128)
    ys, xs = np.nonzero(np.any(drawn != 128, axis=2) & (np.indices((200, 300))[0] > 115))
    distances = np.hypot(xs + 0.5 - circle.center_x, ys + 0.5 - circle.center_y)
    # Below the score and the center mark there is only the rim, a few px wide.
    assert len(distances) > 100
    np.testing.assert_allclose(distances, 60, atol=4)
    assert np.mean(distances) == pytest.approx(60, abs=0.3)
