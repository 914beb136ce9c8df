"""First annotations for labelling tools."""

import hashlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from circles.detection import Detection
from circles.geometry import BBox, Circle
from evaluation.coco import load_dataset
from evaluation.export import LabelledImage, as_coco, as_cvat, as_label_studio, labelled_folder, labelled_records
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import running_api, settings_in

TILTED = Detection(Circle(50, 40, 20), BBox(30, 25, 70, 55), 0.9)
CUT = Detection(Circle(0, 50, 20), BBox(0, 30, 20, 70), 0.8)
IMAGES = [
    LabelledImage("a b.jpg", "/d/a%20b.jpg", 200, 100, (TILTED,)),
    LabelledImage("c.jpg", "/d/c.jpg", 99, 99, (CUT,)),
]


def test_coco_comes_back_as_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(disc_jpeg(1))
    images = list(labelled_folder(tmp_path, "hough", 0.3, "", pytest.fail))
    (tmp_path / "_annotations.coco.json").write_text(as_coco(images))
    (image,) = load_dataset(tmp_path, is_strict=True).images
    assert [truth.circle for truth in image.truth] == [detection.circle for detection in images[0].detections]
    assert len(image.truth) == 2


def test_label_studio_counts_in_percents() -> None:
    first, second = json.loads(as_label_studio(IMAGES))
    assert first["data"]["image"] == "/d/a%20b.jpg"
    (result,) = first["predictions"][0]["result"]
    assert result["type"] == "ellipselabels"
    assert result["value"] == {
        "x": 25,
        "y": 40,
        "radiusX": 10,
        "radiusY": 15,
        "rotation": 0,
        "ellipselabels": ["circle"],
    }
    # A circle that the border cut is the whole circle.
    (cut,) = second["predictions"][0]["result"]
    assert (cut["value"]["x"], cut["value"]["radiusX"]) == (0, 100 * 20 / 99)


def test_cvat_has_an_ellipse_an_object() -> None:
    root = ET.fromstring(as_cvat(IMAGES))
    first, second = root.findall("image")
    assert (first.get("name"), first.get("width"), first.get("height")) == ("a b.jpg", "200", "100")
    (ellipse,) = first.findall("ellipse")
    assert [ellipse.get(name) for name in ("cx", "cy", "rx", "ry")] == ["50.00", "40.00", "20.00", "15.00"]
    assert [each.get("rx") for each in second.findall("ellipse")] == ["20.00"]


def test_files_that_are_no_pictures_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(disc_jpeg(1))
    (tmp_path / "notes.txt").write_text("hello")
    problems: list[str] = []
    assert [image.file_name for image in labelled_folder(tmp_path, "dummy", 0, "/x/", problems.append)] == ["a.jpg"]
    assert len(problems) == 1
    assert problems[0].startswith("notes.txt: ")


def test_records_of_a_service(tmp_path: Path) -> None:
    detector = GatedDetector(FixedDetector((Circle(90, 110, 40), 0.9), (Circle(220, 130, 50), 0.2)))
    with running_api(settings_in(tmp_path), detector) as api:
        for seed in range(3):
            api.client.post("/images/", files={"file": (f"{seed}.jpg", disc_jpeg(seed))})
        shown = list(labelled_records(api.client, None))
        everything = list(labelled_records(api.client, 0))
    ids = [hashlib.sha256(disc_jpeg(seed)).hexdigest() for seed in (2, 1, 0)]
    assert [image.file_name for image in shown] == [f"{image_id}.jpeg" for image_id in ids]
    assert shown[0].link == f"{api.url}/images/{ids[0]}/content"
    assert [len(image.detections) for image in shown] == [1, 1, 1]
    assert [len(image.detections) for image in everything] == [2, 2, 2]
    assert everything[0].detections[0].circle == Circle(90, 110, 40)


@pytest.mark.parametrize("tool", ["coco", "label-studio", "cvat"])
def test_command_writes_a_file(tmp_path: Path, tool: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(disc_jpeg(1))
    output = tmp_path / "labels"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "evaluation.export",
        "--images",
        tmp_path / "pictures",
        "-f",
        tool,
        "-o",
        output,
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "1 pictures, 2 objects" in process.stderr
    content = output.read_text()
    assert "a.jpg" in content
    assert ET.fromstring(content) is not None if tool == "cvat" else json.loads(content)
