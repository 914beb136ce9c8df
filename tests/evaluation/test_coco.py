"""COCO files in, good and bad, and out again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circles.detection import Detection
from circles.geometry import BBox, Circle
from evaluation.coco import (
    DatasetError,
    Truth,
    coco_content,
    load_dataset,
    outline,
    read_predictions,
    write_predictions,
    write_scenes,
)
from evaluation.scenes import draw_scene
from tests.pictures import encode


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "b.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [5.5, 6, 3, 4], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "coin"}],
    }


def write(folder: Path, entries: object, pictures: Path | None = None, name: str = "_annotations.coco.json") -> Path:
    (folder / name).write_text(entries if isinstance(entries, str) else json.dumps(entries))
    pictures = pictures or folder
    pictures.mkdir(exist_ok=True)
    for file_name, width, height in (("a.png", 40, 30), ("b.png", 20, 10)):
        (pictures / file_name).write_bytes(encode(np.zeros((height, width, 3), np.uint8)))
    return folder


def test_boxes_become_corners(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, content()))
    first, second = dataset.images
    assert dataset.problems == ()
    assert (first.image_id, first.path, first.width, first.height) == (7, tmp_path / "a.png", 40, 30)
    assert first.truth == (Truth(BBox(1, 2, 11, 22)), Truth(BBox(5.5, 6, 8.5, 10), is_crowd=True))
    assert second.truth == ()


def test_plain_layout_has_its_pictures_in_a_folder(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, content(), tmp_path / "images", "annotations.json"))
    assert dataset.images[0].path == tmp_path / "images" / "a.png"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "cannot be read as JSON"),
        ({}, "not a COCO detection file"),
        ({**content(), "annotations": [{"id": 1}]}, "not a COCO detection file"),
        ({**content(), "images": []}, "no usable picture"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, entries: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(write(tmp_path, entries))
    assert str(tmp_path) in str(caught.value)


def test_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no _annotations\.coco\.json"):
        load_dataset(tmp_path)


def _box(x: float, y: float, width: float, height: float) -> Callable[[dict[str, Any], Path], None]:
    return lambda entries, _: entries["annotations"][0].update(bbox=[x, y, width, height])


def _truncate(_: dict[str, Any], folder: Path) -> None:
    whole = encode(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    (folder / "a.png").write_bytes(whole[:-100])


def _remove(_: dict[str, Any], folder: Path) -> None:
    (folder / "a.png").unlink()


def _break(_: dict[str, Any], folder: Path) -> None:
    (folder / "a.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(_remove, "absent", id="absent"),
        pytest.param(_break, "cannot be read", id="unreadable"),
        pytest.param(_truncate, "ends early", id="truncated"),
        pytest.param(lambda e, _: e["annotations"][0].pop("bbox"), "annotation 1 cannot be used", id="no box"),
        pytest.param(lambda e, _: e["annotations"][0].update(bbox=[]), "annotation 1 cannot be used", id="empty box"),
        pytest.param(_box(float("nan"), 2, 5, 5), "not a finite number", id="NaN"),
        pytest.param(
            lambda e, _: e["annotations"][0].update(circle={"x": 5, "y": 5, "radius": 0}), "radius 0", id="radius 0"
        ),
        pytest.param(lambda e, _: e["images"][0].update(width=41), "40 x 30 px, its annotation 41 x 30", id="size"),
        pytest.param(_box(1, 2, 0, 5), "no area", id="zero area"),
        pytest.param(_box(30, 2, 20, 5), "outside", id="outside"),
        pytest.param(lambda e, _: e["annotations"][0].update(category_id=5), "category 5", id="category"),
        pytest.param(
            lambda e, _: e["annotations"][0].update(id=2), "annotation 2 is there 2 times", id="annotation id"
        ),
    ],
)
def test_bad_picture_is_named_and_left_out(
    tmp_path: Path, damage: Callable[[dict[str, Any], Path], None], reason: str
) -> None:
    entries = content()
    write(tmp_path, entries)
    damage(entries, tmp_path)
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(entries))
    dataset = load_dataset(tmp_path)
    assert [image.image_id for image in dataset.images] == [9]
    (problem,) = dataset.problems
    assert (problem.image_id, problem.file_name) == (7, "a.png")
    assert reason in problem.reason
    with pytest.raises(DatasetError, match=r"image 7 \(a\.png\)"):
        load_dataset(tmp_path, is_strict=True)


def test_duplicate_image_ids_and_stray_annotations_are_named(tmp_path: Path) -> None:
    entries = content()
    entries["images"].append({"id": 9, "file_name": "a.png", "width": 40, "height": 30})
    entries["annotations"].append({"id": 3, "image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]})
    dataset = load_dataset(write(tmp_path, entries))
    assert [image.image_id for image in dataset.images] == [7]
    assert {problem.image_id for problem in dataset.problems} == {9, 99}


def test_rounding_beyond_the_border_is_no_problem(tmp_path: Path) -> None:
    entries = content()
    entries["annotations"][0]["bbox"] = [-0.5, 2, 41, 20]
    assert load_dataset(write(tmp_path, entries)).problems == ()


def test_predictions_come_back(tmp_path: Path) -> None:
    circle = Circle(20.25, 15.5, 7.125)
    found = (Detection(circle, BBox(13, 8, 27, 23), 0.875), Detection(circle, BBox(13, 8, 27, 24), 0.5))
    write_predictions(tmp_path / "p.json", [(7, found), (9, ())])
    assert read_predictions(tmp_path / "p.json") == {7: found}
    entry = json.loads((tmp_path / "p.json").read_text())[0]
    assert entry["bbox"] == [13, 8, 14, 15]


def test_scenes_come_back_as_a_dataset(tmp_path: Path) -> None:
    scenes = [draw_scene(seed) for seed in range(3)]
    write_scenes(tmp_path / "scenes", scenes)
    dataset = load_dataset(tmp_path / "scenes", is_strict=True)
    for image, scene in zip(dataset.images, scenes, strict=True):
        assert [truth.circle for truth in image.truth] == [drawn.circle for drawn in scene.objects]
        np.testing.assert_allclose(
            [truth.bbox.as_tuple() for truth in image.truth], [drawn.bbox.as_tuple() for drawn in scene.objects]
        )


def test_predictions_carry_the_category_of_the_dataset(tmp_path: Path) -> None:
    entries = content()
    entries["categories"] = [{"id": 3, "name": "coin"}]
    for annotation in entries["annotations"]:
        annotation["category_id"] = 3
    assert load_dataset(write(tmp_path, entries)).category_id == 3


def test_a_cut_circle_is_outlined_as_the_circle_it_is() -> None:
    circle = Circle(0, 50, 20)
    assert outline(circle.bbox().clip(100, 100), circle, 100, 100) == (0, 50, 20, 20)
    assert outline(BBox(10, 20, 30, 30), Circle(20, 25, 7), 100, 100) == (20, 25, 10, 5)


def test_polygon_lies_in_its_box() -> None:
    (annotation,) = coco_content([("a", 50, 50, [Truth(BBox(10, 20, 30, 30))])])["annotations"]
    corners = np.array(annotation["segmentation"][0]).reshape(-1, 2)
    np.testing.assert_allclose([corners.min(axis=0), corners.max(axis=0)], [(10, 20), (30, 30)], atol=0.1)
