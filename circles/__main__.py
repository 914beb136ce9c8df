"""``python -m circles photo.jpg``: prints what a detector finds in pictures; no service needed."""

import json
import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from circles.detection import Detection
from circles.detectors import DetectorName, default_min_score, load_detector
from circles.drawing import draw_detections
from circles.errors import ImageError
from circles.imaging import decode_image, encode_jpeg
from circles.settings import Settings


def main(
    photos: Annotated[list[Path], typer.Argument(help="Picture files.", exists=True, dir_okay=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw the detections into this JPEG file.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help=f"One of {', '.join(get_args(DetectorName))}.")] = None,
    min_score: Annotated[float | None, typer.Option(min=0, max=1, help="Instead of the detector's own.")] = None,
) -> None:
    """Print the detections of every picture, one JSON object a line."""
    settings = Settings()
    if detector is not None and detector not in get_args(DetectorName):
        raise typer.BadParameter(f"--detector is one of {', '.join(get_args(DetectorName))}")
    if output is not None and len(photos) > 1:
        raise typer.BadParameter("--output is for one picture")
    name = cast(DetectorName, detector or settings.detector)
    cut = default_min_score(name) if min_score is None else min_score
    loaded = load_detector(name)
    has_failed = False
    for photo in photos:
        try:
            image = decode_image(photo.read_bytes(), settings.max_image_pixels)
        except ImageError as error:
            print(f"error: {photo}: {error.detail}", file=sys.stderr)
            has_failed = True
            continue
        (found,) = loaded.detect([image])
        detections = [detection for detection in found if detection.score >= cut]
        print(json.dumps({"file": str(photo), "detections": [_as_json(detection) for detection in detections]}))
        if output is not None:
            output.write_bytes(encode_jpeg(draw_detections(image, detections)))
    if has_failed:
        sys.exit(1)


def _as_json(detection: Detection) -> dict[str, object]:
    circle = detection.circle
    return {
        "label": detection.label,
        "bbox": [round(value, 2) for value in detection.bbox.as_tuple()],
        "centroid": {"x": round(circle.center_x, 2), "y": round(circle.center_y, 2)},
        "radius": round(circle.radius, 2),
        "score": round(detection.score, 4),
    }


if __name__ == "__main__":
    typer.run(main)
