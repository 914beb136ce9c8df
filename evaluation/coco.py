"""COCO detection files, in and out; the only place that knows COCO's (x, y, width, height).

A dataset is a folder with ``_annotations.coco.json`` beside its pictures, as labelling tools export it, or with
``annotations.json`` and the pictures in ``images/``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circles.detection import Detection
from circles.errors import ImageError
from circles.geometry import BBox, Circle
from circles.imaging import encode_jpeg, read_header
from evaluation.scenes import Scene

_ANNOTATION_FILES = (("_annotations.coco.json", "."), ("annotations.json", "images"))
_PARTS_OF_SETS = {"train", "val", "valid", "test", "dataset"}
_MAX_OUTSIDE_PX = 1.0  # boxes reach beyond their picture by rounding
_POLYGON_CORNERS = 36
CATEGORY_ID = 1
_CATEGORIES = [{"id": CATEGORY_ID, "name": "circle", "supercategory": ""}]


class DatasetError(ValueError):
    """The dataset cannot be used; the message names the file and the entry."""


@dataclass(frozen=True, slots=True)
class Truth:
    """One annotated object. A crowd is a region where objects were not told apart: nothing there counts.

    ``circle`` is None where the file only has a box.
    """

    bbox: BBox
    circle: Circle | None = None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A picture file and its truth, in the stored picture's px."""

    image_id: int
    path: Path
    width: int
    height: int
    truth: tuple[Truth, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one picture of a dataset, which is therefore left out."""

    image_id: int | None
    file_name: str | None
    reason: str

    def __str__(self) -> str:
        return f"image {self.image_id} ({self.file_name}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """The usable pictures of a folder, in the file's order, and what was wrong with the others."""

    folder: Path
    images: tuple[AnnotatedImage, ...]
    problems: tuple[Problem, ...]

    @property
    def name(self) -> str:
        """The folder's name, with its parent's before it where it is but a part of a set: ``coins-val``."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}-{folder.name}" if folder.name in _PARTS_OF_SETS else folder.name


def load_dataset(folder: Path, *, is_strict: bool = False) -> Dataset:
    """The annotated pictures of a COCO folder.

    Args:
        is_strict: Stop at the first problem instead of leaving the picture out.

    Raises:
        DatasetError: No annotation file, no valid JSON, an entry that lacks what COCO prescribes, no usable picture
            at all, or any problem when strict.
    """
    annotation_file, image_folder = _find_annotations(folder)
    try:
        content = json.loads(annotation_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{annotation_file} cannot be read as JSON: {error}") from error
    try:
        reasons = _reasons_in_file(content)
        truth: dict[int, list[Truth]] = {}
        for annotation in content["annotations"]:
            truth.setdefault(annotation["image_id"], []).append(_truth(annotation))
        images = [_image(entry, truth.get(entry["id"], []), image_folder) for entry in content["images"]]
        strays = truth.keys() - {image.image_id for image in images}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{annotation_file} is not a COCO detection file: {error!r}") from error
    problems = [Problem(image_id, None, "annotated, but not among the file's images") for image_id in sorted(strays)]
    usable = []
    for image in images:
        reason = reasons.get(image.image_id) or _reason_in_picture(image)
        if reason is None:
            usable.append(image)
        else:
            problems.append(Problem(image.image_id, image.path.name, reason))
    if problems and is_strict:
        raise DatasetError(f"{annotation_file}: {problems[0]}")
    if not usable:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise DatasetError(f"{annotation_file} has no usable picture{first}")
    return Dataset(folder, tuple(usable), tuple(problems))


def write_predictions(path: Path, detections: Iterable[tuple[int, Sequence[Detection]]]) -> None:
    """COCO's results format, an entry a detection, with the circle beside the box."""
    entries = [
        {
            "image_id": image_id,
            "category_id": CATEGORY_ID,
            "bbox": _xywh(detection.bbox),
            "score": detection.score,
            "circle": _circle_entry(detection.circle),
        }
        for image_id, found in detections
        for detection in found
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")


def read_predictions(path: Path) -> dict[int, tuple[Detection, ...]]:
    """What ``write_predictions`` wrote, by image id, best score first.

    Raises:
        DatasetError: The file is not one of COCO results with circles.
    """
    found: dict[int, list[Detection]] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            circle = Circle(entry["circle"]["x"], entry["circle"]["y"], entry["circle"]["radius"])
            detection = Detection(circle, _bbox(entry["bbox"]), entry["score"])
            found.setdefault(entry["image_id"], []).append(detection)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is no file of COCO results: {error!r}") from error
    return {image_id: tuple(sorted(each, key=lambda d: -d.score)) for image_id, each in found.items()}


def coco_content(images: Iterable[tuple[str, int, int, Sequence[Truth]]]) -> dict[str, Any]:
    """A COCO detection file's content: box, polygon and circle of every object.

    Args:
        images: File name, width, height and objects of every picture.
    """
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, width, height, objects) in enumerate(images, start=1):
        image_entries.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for truth in objects:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": CATEGORY_ID,
                "bbox": _xywh(truth.bbox),
                "area": truth.bbox.area * np.pi / 4,
                "iscrowd": int(truth.is_crowd),
                "segmentation": [_polygon(truth.bbox)],
            }
            if truth.circle is not None:
                annotation["circle"] = _circle_entry(truth.circle)
            annotations.append(annotation)
    return {"images": image_entries, "annotations": annotations, "categories": _CATEGORIES}


def write_scenes(folder: Path, scenes: Iterable[Scene]) -> None:
    """Drawn scenes as a dataset that ``load_dataset`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, scene in enumerate(scenes):
        file_name = f"scene_{number:05d}.jpg"
        (folder / file_name).write_bytes(encode_jpeg(scene.image, quality=95))
        height, width = scene.image.shape[:2]
        entries.append((file_name, width, height, [Truth(drawn.bbox, drawn.circle) for drawn in scene.objects]))
    (folder / "_annotations.coco.json").write_text(json.dumps(coco_content(entries)), encoding="utf-8")


def _find_annotations(folder: Path) -> tuple[Path, Path]:
    for file_name, image_folder in _ANNOTATION_FILES:
        if (folder / file_name).is_file():
            return folder / file_name, folder / image_folder
    names = " or ".join(name for name, _ in _ANNOTATION_FILES)
    raise DatasetError(f"{folder} holds no {names}")


def _image(entry: dict[str, Any], truth: Sequence[Truth], image_folder: Path) -> AnnotatedImage:
    path = image_folder / entry["file_name"]
    return AnnotatedImage(entry["id"], path, int(entry["width"]), int(entry["height"]), tuple(truth))


def _truth(annotation: dict[str, Any]) -> Truth:
    circle = annotation.get("circle")
    return Truth(
        bbox=_bbox(annotation["bbox"]),
        circle=None if circle is None else Circle(circle["x"], circle["y"], circle["radius"]),
        is_crowd=bool(annotation.get("iscrowd", 0)),
    )


def _reasons_in_file(content: dict[str, Any]) -> dict[int, str]:
    """By image id, why the annotation file alone makes an image unusable."""
    reasons: dict[int, str] = {}
    categories = {category["id"] for category in content["categories"]}
    annotation_ids = Counter(annotation["id"] for annotation in content["annotations"])
    for annotation in content["annotations"]:
        name = f"annotation {annotation['id']}"
        if annotation["category_id"] not in categories:
            reasons[annotation["image_id"]] = f"{name} has the unknown category {annotation['category_id']}"
        elif annotation_ids[annotation["id"]] > 1:
            reasons[annotation["image_id"]] = f"{name} is there {annotation_ids[annotation['id']]} times"
    for image_id, count in Counter(entry["id"] for entry in content["images"]).items():
        if count > 1:
            reasons[image_id] = f"its id is there {count} times"
    return reasons


def _reason_in_picture(image: AnnotatedImage) -> str | None:
    """Why the picture itself, or its boxes, make an image unusable; None when nothing does."""
    in_boxes = next((reason for truth in image.truth if (reason := _reason_in_box(truth.bbox, image))), None)
    return in_boxes or _reason_in_file(image)


def _reason_in_box(bbox: BBox, image: AnnotatedImage) -> str | None:
    if bbox.width <= 0 or bbox.height <= 0:
        return f"the box {_xywh(bbox)} has no area"
    clipped = bbox.clip(image.width, image.height)
    if max(np.abs(np.subtract(bbox.as_tuple(), clipped.as_tuple()))) > _MAX_OUTSIDE_PX:
        return f"the box {_xywh(bbox)} lies outside the {image.width} x {image.height} px"
    return None


def _reason_in_file(image: AnnotatedImage) -> str | None:
    try:
        header = read_header(image.path.read_bytes(), max_pixels=2**40)
    except FileNotFoundError:
        return "the file is absent"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    except ImageError as error:
        return f"the file cannot be read: {error.detail}"
    if (header.width, header.height) != (image.width, image.height):
        return f"the file has {header.width} x {header.height} px, its annotation {image.width} x {image.height}"
    return None


def _bbox(xywh: Sequence[float]) -> BBox:
    x, y, width, height = (float(value) for value in xywh)
    return BBox(x, y, x + width, y + height)


def _xywh(bbox: BBox) -> list[float]:
    return [bbox.x_min, bbox.y_min, bbox.width, bbox.height]


def _circle_entry(circle: Circle) -> dict[str, float]:
    return {"x": circle.center_x, "y": circle.center_y, "radius": circle.radius}


def _polygon(bbox: BBox) -> list[float]:
    """The ellipse in the box, as COCO writes polygons: x, y, x, y, ..."""
    center = ((bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2)
    angles = np.linspace(0, 2 * np.pi, _POLYGON_CORNERS, endpoint=False)
    xs = center[0] + bbox.width / 2 * np.cos(angles)
    ys = center[1] + bbox.height / 2 * np.sin(angles)
    return [round(float(value), 2) for value in np.stack([xs, ys], axis=-1).ravel()]
