"""``python -m evaluation.export``: detections as first annotations, for people to correct in their labelling tool.

COCO (box, polygon and circle), Label Studio (``ellipselabels``) and CVAT (``ellipse``), from a folder of pictures or
from what a service has recorded.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args
from urllib.parse import quote

import httpx2
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from circles.detection import Detection
from circles.detectors import DetectorName, default_min_score, load_detector
from circles.errors import ImageError
from circles.imaging import decode_image
from circles.settings import Settings
from evaluation.coco import Truth, coco_content, outline
from evaluation.sources import detection_of

_LABEL = "circle"
_MAX_PIXELS = 2**31
_PAGE_SIZE = 200
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A picture with what was detected in it: its file name, and where a browser finds it."""

    file_name: str
    link: str
    width: int
    height: int
    detections: tuple[Detection, ...]


def as_coco(images: Iterable[LabelledImage]) -> str:
    """A COCO detection file: box, polygon and circle of every object."""
    entries = (
        (image.file_name, image.width, image.height, [Truth(d.bbox, d.circle) for d in image.detections])
        for image in images
    )
    return json.dumps(coco_content(entries), indent=1)


def as_label_studio(images: Iterable[LabelledImage]) -> str:
    """Label Studio tasks with predictions; places and radii are percents of the picture's width and height.

    The tasks name each picture by its ``link``.

    For a labelling interface with ``<Image name="image" value="$image"/>`` and
    ``<EllipseLabels name="label" toName="image">``.
    """
    tasks = []
    for image in images:
        results = [
            {
                "id": f"{number}",
                "type": "ellipselabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": image.width,
                "original_height": image.height,
                "score": detection.score,
                "value": {
                    "x": 100 * center_x / image.width,
                    "y": 100 * center_y / image.height,
                    "radiusX": 100 * radius_x / image.width,
                    "radiusY": 100 * radius_y / image.height,
                    "rotation": 0,
                    "ellipselabels": [_LABEL],
                },
            }
            for number, (detection, (center_x, center_y, radius_x, radius_y)) in enumerate(
                zip(image.detections, _outlines(image), strict=True)
            )
        ]
        tasks.append({"data": {"image": image.link}, "predictions": [{"result": results}]})
    return json.dumps(tasks, indent=1)


def as_cvat(images: Iterable[LabelledImage]) -> str:
    """CVAT's "for images 1.1" XML, an ``ellipse`` an object."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for number, image in enumerate(images):
        element = ET.SubElement(
            root, "image", id=str(number), name=image.file_name, width=str(image.width), height=str(image.height)
        )
        for ellipse in _outlines(image):
            names = ("cx", "cy", "rx", "ry")
            place = {name: f"{value:.2f}" for name, value in zip(names, ellipse, strict=True)}
            ET.SubElement(
                element, "ellipse", {"label": _LABEL, "source": "auto", "occluded": "0", "z_order": "0", **place}
            )
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


class Format(StrEnum):
    """Labelling tools' formats."""

    COCO = "coco"
    LABEL_STUDIO = "label-studio"
    CVAT = "cvat"


_WRITERS: dict[Format, Callable[[Iterable[LabelledImage]], str]] = {
    Format.COCO: as_coco,
    Format.LABEL_STUDIO: as_label_studio,
    Format.CVAT: as_cvat,
}


def labelled_folder(
    folder: Path, detector: DetectorName, min_score: float, url_prefix: str, on_problem: Callable[[str], None]
) -> Iterator[LabelledImage]:
    """Every picture of a folder, by name, with what this detector finds in it; other files are told and left out."""
    loaded = load_detector(detector)
    for path in sorted(each for each in folder.iterdir() if each.is_file()):
        try:
            image = decode_image(path.read_bytes(), _MAX_PIXELS)
        except ImageError as error:
            on_problem(f"{path.name}: {error.detail}")
            continue
        (found,) = loaded.detect([image])
        kept = tuple(detection for detection in found if detection.score >= min_score)
        yield LabelledImage(path.name, url_prefix + quote(path.name), image.shape[1], image.shape[0], kept)


def labelled_records(client: httpx2.Client, min_score: float | None) -> Iterator[LabelledImage]:
    """Every image that a service has detected in, newest first, named by its id: clients' names come twice.

    Raises:
        httpx2.HTTPError: It refuses or does not answer.
    """
    parameters: dict[str, Any] = {} if min_score is None else {"min_score": min_score}
    query: dict[str, Any] = {"limit": _PAGE_SIZE, "status": "done"}
    while True:
        page = client.get("/images/", params=query).raise_for_status().json()
        for item in page["items"]:
            response = client.get(f"/images/{item['image_id']}/objects", params=parameters)
            found = tuple(detection_of(entry) for entry in response.raise_for_status().json()["objects"])
            file_name = f"{item['image_id']}.{item['media_type'].removeprefix('image/')}"
            link = str(client.build_request("GET", f"/images/{item['image_id']}/content").url)
            yield LabelledImage(file_name, link, item["width"], item["height"], found)
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]


def _outlines(image: LabelledImage) -> list[tuple[float, float, float, float]]:
    """Center x and y, horizontal and vertical radius of every object; px."""
    return [outline(each.bbox, each.circle, image.width, image.height) for each in image.detections]


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    format_: Annotated[Format, typer.Option("--format", "-f", help="Of which tool.")] = Format.COCO,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures to detect in.", exists=True)] = None,
    detector: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(DetectorName))}.")] = None,
    url_prefix: Annotated[
        str, typer.Option(help="Label Studio finds the folder's pictures behind it, by name.")
    ] = "/data/local-files/?d=",
    url: Annotated[str | None, typer.Option(help="Take the records of this service instead.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="API_KEY", help="Of the service.")] = None,
    min_score: Annotated[float | None, typer.Option(min=0, max=1, help="Instead of the default.")] = None,
) -> None:
    """Write detections in a labelling tool's format."""
    if (images is None) == (url is None):
        raise typer.BadParameter("either --images or --url")
    if detector is not None and detector not in get_args(DetectorName):
        raise typer.BadParameter(f"--detector is one of {', '.join(get_args(DetectorName))}")
    console = Console(stderr=True, soft_wrap=True)
    labelled: Sequence[LabelledImage]
    if images is not None:
        name = cast(DetectorName, detector or Settings().detector)
        cut = default_min_score(name) if min_score is None else min_score
        found = labelled_folder(
            images, name, cut, url_prefix, lambda problem: console.print(f"left out: {escape(problem)}")
        )
        labelled = list(track(found, "detecting", console=console))
    else:
        headers = {"X-API-Key": api_key} if api_key else {}
        try:
            with httpx2.Client(base_url=str(url), headers=headers, timeout=_TIMEOUT_S) as client:
                labelled = list(track(labelled_records(client, min_score), "reading", console=console))
        except httpx2.HTTPError as error:
            _fail(console, f"{url}: {error}")
    output.write_text(_WRITERS[format_](labelled), encoding="utf-8")
    objects = sum(len(image.detections) for image in labelled)
    console.print(f"{output}: {len(labelled)} pictures, {objects} objects")


def _fail(console: Console, reason: str) -> NoReturn:
    console.print(f"[red]error:[/] {escape(reason)}")
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
