"""``python -m evaluation``: judges a detector, or a running service, on an annotated dataset."""

import contextlib
import os
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, cast, get_args

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from circles.detectors import DetectorName
from circles.settings import Settings
from evaluation.coco import AnnotatedImage, DatasetError, load_dataset
from evaluation.metrics import Counts, count_matches, mask_jaccard, match_bboxes
from evaluation.sources import Answer, DetectionSource, InProcessSource, ServiceSource, SourceError

_ROOT = Path(__file__).resolve().parent.parent
_DATASETS = (_ROOT / "evaluation" / "dataset", _ROOT.parent / "shared" / "datasets" / "coins" / "val")

console = Console(soft_wrap=True)


def main(
    dataset: Annotated[
        Path | None, typer.Option(help="COCO folder; default: evaluation/dataset, if there is one.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="Measure this detector in-process.")] = None,
    url: Annotated[str | None, typer.Option(help="Measure the service at this address.")] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Instead of the default of what is measured.")
    ] = None,
    iou: Annotated[float, typer.Option(min=0, max=1, help="From which overlap a detection counts as right.")] = 0.5,
) -> None:
    """Judge a detector by boxes: precision, recall and F1 by Hungarian matching, Jaccard index by pixel masks."""
    if detector is not None and url is not None:
        raise typer.BadParameter("either --detector or --url")
    if detector is not None and detector not in get_args(DetectorName):
        raise typer.BadParameter(f"--detector is one of {', '.join(get_args(DetectorName))}")
    folder = dataset or next((candidate for candidate in _DATASETS if candidate.is_dir()), None)
    if folder is None:
        raise typer.BadParameter("there is no evaluation/dataset/; name a folder with --dataset")
    cv2.setNumThreads(1)
    try:
        images = load_dataset(folder)
        with contextlib.ExitStack() as stack:
            source: DetectionSource
            if url is not None:
                source = stack.enter_context(ServiceSource(url, min_score, os.environ.get("API_KEY")))
            else:
                name = cast(DetectorName, detector or Settings().detector)
                source = InProcessSource(name, min_score)
            answers = [source.detect(image.path) for image in track(images, "detecting", console=console)]
    except (DatasetError, SourceError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {error}")
        sys.exit(1)
    _print_scores(f"{source.description} on {folder}", images, answers, iou)


def _print_scores(title: str, images: list[AnnotatedImage], answers: list[Answer], iou: float) -> None:
    counts = Counts()
    jaccards: list[float] = []
    ious: list[float] = []
    for image, answer in zip(images, answers, strict=True):
        bboxes = [detection.bbox for detection in answer.detections]
        counts += count_matches(bboxes, image.truth, iou)
        ious += [match.iou for match in match_bboxes(bboxes, image.truth, iou)]
        jaccards.append(mask_jaccard(bboxes, image.truth, image.width, image.height))
    table = Table("measure", "value", title=title)
    for name, value in (
        ("images", f"{len(images)}"),
        ("objects", f"{sum(len(image.truth) for image in images)}"),
        (f"precision at IoU {iou:g}", f"{counts.precision:.4f}"),
        (f"recall at IoU {iou:g}", f"{counts.recall:.4f}"),
        (f"F1 at IoU {iou:g}", f"{counts.f1:.4f}"),
        ("mean IoU of matches", f"{np.mean(ious) if ious else float('nan'):.4f}"),
        ("mean Jaccard index", f"{np.mean(jaccards) if jaccards else float('nan'):.4f}"),
        ("seconds an image, median", f"{median(answer.seconds for answer in answers):.4f}"),
    ):
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
