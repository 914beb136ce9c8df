"""COCO files in, good and bad."""

import json
from pathlib import Path

import pytest

from circles.geometry import BBox
from evaluation.coco import DatasetError, load_dataset

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 9, "file_name": "b.jpg", "width": 20, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [5.5, 6, 3, 4]},
    ],
    "categories": [{"id": 1, "name": "coin"}],
}


def write(folder: Path, content: object, name: str = "_annotations.coco.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_boxes_become_corners(tmp_path: Path) -> None:
    first, second = load_dataset(write(tmp_path, CONTENT))
    assert (first.image_id, first.path, first.width, first.height) == (7, tmp_path / "a.jpg", 40, 30)
    assert first.truth == (BBox(1, 2, 11, 22), BBox(5.5, 6, 8.5, 10))
    assert second.truth == ()


def test_plain_layout_has_its_pictures_in_a_folder(tmp_path: Path) -> None:
    first, _ = load_dataset(write(tmp_path, CONTENT, "annotations.json"))
    assert first.path == tmp_path / "images" / "a.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ({}, "not a COCO detection file"),
        ({**CONTENT, "annotations": [{"image_id": 99, "bbox": [0, 0, 1, 1]}]}, "99"),
        ({**CONTENT, "annotations": [{"image_id": 7, "bbox": [0, 0, 1]}]}, "not a COCO detection file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(write(tmp_path, content))
    assert str(tmp_path) in str(caught.value)


def test_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no _annotations\.coco\.json"):
        load_dataset(tmp_path)
