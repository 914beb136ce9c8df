"""COCO detection files in: pictures with their annotated boxes.

The only place that knows COCO's (x, y, width, height); everything else uses ``BBox``.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from circles.geometry import BBox

_ANNOTATION_FILES = (("_annotations.coco.json", "."), ("annotations.json", "images"))


class DatasetError(ValueError):
    """The dataset cannot be read; the message names the file and the entry."""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A picture file and its truth: the annotated boxes, clipped to nothing, in the stored picture's px."""

    image_id: int
    path: Path
    width: int
    height: int
    truth: tuple[BBox, ...]


def load_dataset(folder: Path) -> list[AnnotatedImage]:
    """The annotated pictures of a COCO folder, in the file's order.

    Two layouts are understood: ``_annotations.coco.json`` beside the pictures, and ``annotations.json`` with the
    pictures in ``images/``.

    Raises:
        DatasetError: No annotation file, no valid JSON, or an entry that lacks what COCO prescribes.
    """
    annotation_file, image_folder = _find_annotations(folder)
    try:
        content = json.loads(annotation_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{annotation_file} cannot be read as JSON: {error}") from error
    try:
        truth: dict[int, list[BBox]] = {entry["id"]: [] for entry in content["images"]}
        for annotation in content["annotations"]:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            truth[annotation["image_id"]].append(BBox(x, y, x + width, y + height))
        return [
            AnnotatedImage(
                image_id=entry["id"],
                path=image_folder / entry["file_name"],
                width=entry["width"],
                height=entry["height"],
                truth=tuple(truth[entry["id"]]),
            )
            for entry in content["images"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{annotation_file} is not a COCO detection file: {error!r}") from error


def _find_annotations(folder: Path) -> tuple[Path, Path]:
    for file_name, image_folder in _ANNOTATION_FILES:
        if (folder / file_name).is_file():
            return folder / file_name, folder / image_folder
    names = " or ".join(name for name, _ in _ANNOTATION_FILES)
    raise DatasetError(f"{folder} holds no {names}")
