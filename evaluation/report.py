"""The report of a run: numbers for programs, one self-contained page for people, and every picture judged."""

import base64
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from circles.imaging import decode_image, encode_jpeg
from evaluation.charts import charts
from evaluation.coco import Dataset, DatasetError, read_predictions, write_predictions
from evaluation.drawing import draw_judged
from evaluation.run import Run, hardware
from evaluation.scores import ImageResult, ImageScores, Interval, Scores, difference_intervals, score
from evaluation.sources import Source
from evaluation.summary import HEADLINE, as_json

_GALLERY_SIZE = 24


@dataclass(frozen=True, slots=True)
class Comparison:
    """An earlier run on the same pictures."""

    name: str
    metrics: dict[str, Any]
    intervals: dict[str, Interval]  # of the differences, new less old


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """A line of the headline table, as text."""

    name: str
    value: str
    interval: str
    difference: str
    difference_interval: str


def compare(scores: Scores, metrics_path: Path) -> Comparison:
    """The run that this ``metrics.json`` is of, judged anew on today's truth from the predictions beside it.

    Raises:
        DatasetError: The files cannot be read.
    """
    try:
        metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
        min_score = float(metrics["min_score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{metrics_path} is no metrics.json: {error!r}") from error
    predictions = read_predictions(metrics_path.parent / "predictions.coco.json")
    old = score(
        [ImageResult(r.image, predictions.get(r.image.image_id, ()), r.seconds) for r in scores.results], min_score
    )
    return Comparison(metrics_path.parent.name, as_json(old, {}), difference_intervals(scores, old))


def write_report(
    output: Path, dataset: Dataset, source: Source, run: Run, scores: Scores, comparison: Comparison | None
) -> dict[str, Any]:
    """Writes ``metrics.json``, ``per_image.csv``, ``predictions.coco.json``, ``annotated/`` and ``report.html``.

    Returns:
        What ``metrics.json`` holds.
    """
    output.mkdir(parents=True, exist_ok=True)
    problems = [*dataset.problems, *run.failures]
    about = {
        "dataset": str(dataset.folder),
        "measured": source.description,
        "hardware": hardware(),
        "left_out": [str(problem) for problem in problems],
        "is_interrupted": run.is_interrupted,
    }
    metrics = as_json(scores, about)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_predictions(
        output / "predictions.coco.json", [(result.image.image_id, result.detections) for result in scores.results]
    )
    _write_per_image(output / "per_image.csv", scores)
    pictures = _write_annotated(output / "annotated", scores)
    page = _page(
        metrics=metrics,
        title=f"{source.name} on {dataset.name}",
        description=f"{source.description}, {len(scores.results)} pictures of {dataset.folder.name}",
        hardware=about["hardware"],
        is_interrupted=run.is_interrupted,
        rows=headline_rows(metrics, comparison),
        differences=comparison is not None,
        compared_with=comparison.name if comparison else "",
        spreads=_spreads(metrics),
        charts=charts(scores),
        gallery=_gallery(scores, pictures),
        problems=problems,
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    return metrics


def headline_rows(metrics: dict[str, Any], comparison: Comparison | None) -> list[HeadlineRow]:
    """The headline table, ready to be shown."""
    rows = []
    for key, name in HEADLINE:
        value, difference, difference_interval = metrics[key], "", ""
        if comparison is not None:
            old = comparison.metrics[key]
            difference = "" if value is None or old is None else f"{value - old:+.4g}"
            interval = comparison.intervals.get(key)
            difference_interval = "" if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"
        bounds = metrics["intervals_95"].get(key)
        shown_bounds = "" if bounds is None or None in bounds else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
        rows.append(HeadlineRow(name, _shown(value), shown_bounds, difference, difference_interval))
    return rows


def _shown(value: float | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _page(**content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["shown"] = _shown
    return environment.get_template("report.html.j2").render(**content)


def _spreads(metrics: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    circles = metrics["circles"]
    return [
        ("centre error, px", circles["center_error_px"]),
        ("centre error, part of the radius", circles["center_error_relative"]),
        ("radius error, px", circles["radius_error_px"]),
        ("radius error, part of the radius", circles["radius_error_relative"]),
        ("IoU of circles", circles["iou"]),
        ("seconds an image", metrics["seconds"]),
    ]


def _write_per_image(path: Path, scores: Scores) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image_id", "file_name", "objects", "detections", "right", "wrong", "missed", "jaccard", "seconds"]
        )
        for result, image in zip(scores.results, scores.per_image, strict=True):
            half = image.counts[0.5]
            writer.writerow(
                [
                    result.image.image_id,
                    result.image.path.name,
                    half.true_positives + half.false_negatives,
                    len(image.kept),
                    half.true_positives,
                    half.false_positives,
                    half.false_negatives,
                    f"{image.jaccard:.6f}",
                    f"{result.seconds:.6f}",
                ]
            )


def _write_annotated(folder: Path, scores: Scores) -> list[bytes]:
    """Every picture judged, as a file of its own; their bytes, in the run's order."""
    folder.mkdir(exist_ok=True)
    pictures = []
    for result, image_scores in zip(scores.results, scores.per_image, strict=True):
        image = decode_image(result.image.path.read_bytes(), max_pixels=2**40)
        pictures.append(encode_jpeg(draw_judged(image, result, image_scores), quality=85))
        (folder / f"{result.image.image_id}_{Path(result.image.path.name).stem}.jpg").write_bytes(pictures[-1])
    return pictures


def _gallery(scores: Scores, pictures: list[bytes]) -> list[dict[str, str]]:
    order = sorted(range(len(pictures)), key=lambda index: _goodness(scores.per_image[index]))
    return [
        {
            "name": scores.results[index].image.path.name,
            "caption": _caption(scores.per_image[index]),
            "base64": base64.b64encode(pictures[index]).decode(),
        }
        for index in order[:_GALLERY_SIZE]
    ]


def _goodness(image: ImageScores) -> tuple[float, float]:
    return image.counts[0.5].f1, image.jaccard


def _caption(image: ImageScores) -> str:
    half = image.counts[0.5]
    return (
        f"{half.true_positives} right, {half.false_positives} wrong, {half.false_negatives} missed, "
        f"Jaccard {image.jaccard:.3f}"
    )
