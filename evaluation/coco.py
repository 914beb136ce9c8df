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
from circles.imaging import decode_image, encode_jpeg
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
    category_id: int = 1
    """What the file calls its objects, where it has one name for all; predictions are written under it."""

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
        truth, reasons = _annotations(content["annotations"], {category["id"] for category in content["categories"]})
        problems = [
            Problem(image_id, None, "annotated, but not among the file's images")
            for image_id in sorted(truth.keys() - {entry["id"] for entry in content["images"]}, key=str)
        ]
        counts = Counter(entry["id"] for entry in content["images"])
        reasons |= {image_id: f"its id is there {count} times" for image_id, count in counts.items() if count > 1}
        images = [_image(entry, truth.get(entry["id"], []), image_folder) for entry in content["images"]]
        categories = {annotation["category_id"] for annotation in content["annotations"] if "category_id" in annotation}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{annotation_file} is not a COCO detection file: {error!r}") from error
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
    category_id = categories.pop() if len(categories) == 1 else CATEGORY_ID
    return Dataset(folder, tuple(usable), tuple(problems), category_id)


def write_predictions(
    path: Path, detections: Iterable[tuple[int, Sequence[Detection]]], category_id: int = CATEGORY_ID
) -> None:
    """COCO's results format, an entry a detection, with the circle beside the box."""
    entries = [
        {
            "image_id": image_id,
            "category_id": category_id,
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
                "segmentation": [_polygon(truth, width, height)],
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


def outline(bbox: BBox, circle: Circle | None, width: int, height: int) -> tuple[float, float, float, float]:
    """The ellipse that an object is: center x and y, horizontal and vertical radius; px.

    It is the one in the box, which follows a tilted object. A box that the picture's border cut says nothing of what
    lies beyond, so there it is the circle, where one is known.
    """
    is_cut = bbox.margin(width, height) < _MAX_OUTSIDE_PX
    if circle is not None and is_cut and circle.bbox() != circle.bbox().clip(width, height):
        return circle.center_x, circle.center_y, circle.radius, circle.radius
    return (bbox.x_min + bbox.x_max) / 2, (bbox.y_min + bbox.y_max) / 2, bbox.width / 2, bbox.height / 2


def _find_annotations(folder: Path) -> tuple[Path, Path]:
    for file_name, image_folder in _ANNOTATION_FILES:
        if (folder / file_name).is_file():
            return folder / file_name, folder / image_folder
    names = " or ".join(name for name, _ in _ANNOTATION_FILES)
    raise DatasetError(f"{folder} holds no {names}")


def _image(entry: dict[str, Any], truth: Sequence[Truth], image_folder: Path) -> AnnotatedImage:
    path = image_folder / entry["file_name"]
    return AnnotatedImage(entry["id"], path, int(entry["width"]), int(entry["height"]), tuple(truth))


def _annotations(
    entries: Sequence[dict[str, Any]], categories: set[int]
) -> tuple[dict[int, list[Truth]], dict[int, str]]:
    """By image id: the objects, and why the annotation file alone makes an image unusable."""
    truth: dict[int, list[Truth]] = {}
    reasons: dict[int, str] = {}
    counts = Counter(entry.get("id") for entry in entries)
    for entry in entries:
        image_id, name = entry["image_id"], f"annotation {entry.get('id')}"
        objects = truth.setdefault(image_id, [])
        try:
            objects.append(_truth(entry))
        except (KeyError, TypeError, ValueError) as error:
            reasons[image_id] = f"{name} cannot be used: {error!r}"
        if entry.get("category_id") not in categories:
            reasons[image_id] = f"{name} has the unknown category {entry.get('category_id')}"
        elif counts[entry.get("id")] > 1:
            reasons[image_id] = f"{name} is there {counts[entry.get('id')]} times"
    return truth, reasons


def _truth(annotation: dict[str, Any]) -> Truth:
    entry = annotation.get("circle")
    circle = None if entry is None else Circle(float(entry["x"]), float(entry["y"]), float(entry["radius"]))
    bbox = _bbox(annotation["bbox"])
    numbers = [*bbox.as_tuple(), *((circle.center_x, circle.center_y, circle.radius) if circle else ())]
    if not np.all(np.isfinite(numbers)):
        raise ValueError("not a finite number")
    if circle is not None and circle.radius <= 0:
        raise ValueError(f"radius {circle.radius:g}")
    return Truth(bbox, circle, is_crowd=bool(annotation.get("iscrowd", 0)))


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
        height, width = decode_image(image.path.read_bytes(), max_pixels=2**40).shape[:2]
    except FileNotFoundError:
        return "the file is absent"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    except ImageError as error:
        return f"the file cannot be read: {error.detail}"
    if (width, height) != (image.width, image.height):
        return f"the file has {width} x {height} px, its annotation {image.width} x {image.height}"
    return None


def _bbox(xywh: Sequence[float]) -> BBox:
    x, y, width, height = (float(value) for value in xywh)
    return BBox(x, y, x + width, y + height)


def _xywh(bbox: BBox) -> list[float]:
    return [bbox.x_min, bbox.y_min, bbox.width, bbox.height]


def _circle_entry(circle: Circle) -> dict[str, float]:
    return {"x": circle.center_x, "y": circle.center_y, "radius": circle.radius}


def _polygon(truth: Truth, width: int, height: int) -> list[float]:
    """The outline as COCO writes polygons: x, y, x, y, ...; what lies beyond the border is drawn in to it."""
    center_x, center_y, radius_x, radius_y = outline(truth.bbox, truth.circle, width, height)
    angles = np.linspace(0, 2 * np.pi, _POLYGON_CORNERS, endpoint=False)
    xs = np.clip(center_x + radius_x * np.cos(angles), 0, width)
    ys = np.clip(center_y + radius_y * np.sin(angles), 0, height)
    return [round(float(value), 2) for value in np.stack([xs, ys], axis=-1).ravel()]
