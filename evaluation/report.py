"""The report of a run: numbers for programs, one self-contained page for people, and every picture judged."""

import base64
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from circles.detection import Detection
from circles.imaging import RGBImage, decode_image, encode_jpeg, shrink
from evaluation.charts import charts
from evaluation.coco import Dataset, DatasetError, read_predictions, write_predictions
from evaluation.drawing import draw_judged
from evaluation.run import Run, hardware
from evaluation.scores import ImageResult, ImageScores, Interval, Scores, difference_intervals, score
from evaluation.sources import Source
from evaluation.summary import HEADLINE, as_json

_GALLERY_SIZE = 24
_GALLERY_SIDE_PX = 900


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """What an earlier run left in its folder: its threshold, the pictures (id, file name) it judged, its answers."""

    name: str
    min_score: float
    judged: set[tuple[int, str]]
    predictions: dict[int, tuple[Detection, ...]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """An earlier run on the same pictures."""

    name: str
    differences: dict[str, float]  # by key of metrics.json, new less old
    intervals: dict[str, Interval]  # of the differences


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """A line of the headline table, as text."""

    name: str
    value: str
    interval: str
    difference: str
    difference_interval: str


def load_earlier(metrics_path: Path) -> EarlierRun:
    """The run that this ``metrics.json`` is of, from the files beside it.

    Raises:
        DatasetError: They cannot be read.
    """
    folder = metrics_path.parent
    try:
        min_score = float(json.loads(metrics_path.read_text(encoding="utf-8"))["min_score"])
        with (folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
            judged = {(int(row["image_id"]), row["file_name"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{metrics_path} is no metrics.json beside its per_image.csv: {error!r}") from error
    return EarlierRun(folder.name, min_score, judged, read_predictions(folder / "predictions.coco.json"))


def compare(scores: Scores, earlier: EarlierRun) -> Comparison:
    """Both runs judged on the pictures that both have, by today's truth.

    Raises:
        DatasetError: They have none in common.
    """
    common = [r for r in scores.results if (r.image.image_id, r.image.path.name) in earlier.judged]
    if not common:
        raise DatasetError(f"the run {earlier.name} has no picture in common with this one")
    new = scores if len(common) == len(scores.results) else score(common, scores.min_score)
    before = [ImageResult(r.image, earlier.predictions.get(r.image.image_id, ()), r.seconds) for r in common]
    old = score(before, earlier.min_score)
    new_metrics, old_metrics = as_json(new, {}), as_json(old, {})
    differences = {
        key: new_metrics[key] - old_metrics[key]
        for key, _ in HEADLINE
        if new_metrics[key] is not None and old_metrics[key] is not None
    }
    return Comparison(f"{earlier.name} ({len(common)} pictures)", differences, difference_intervals(new, old))


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
        output / "predictions.coco.json",
        [(result.image.image_id, result.detections) for result in scores.results],
        dataset.category_id,
    )
    _write_per_image(output / "per_image.csv", scores)
    _write_annotated(output / "annotated", scores)
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
        gallery=_gallery(scores),
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
            difference = f"{comparison.differences[key]:+.4g}" if key in comparison.differences else ""
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
        ("center error, px", circles["center_error_px"]),
        ("center error, part of the radius", circles["center_error_relative"]),
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


def _write_annotated(folder: Path, scores: Scores) -> None:
    """Every picture judged, as a file of its own."""
    folder.mkdir(exist_ok=True)
    for index, result in enumerate(scores.results):
        name = f"{result.image.image_id}_{Path(result.image.path.name).stem}.jpg"
        (folder / name).write_bytes(encode_jpeg(_judged_picture(scores, index), quality=85))


def _judged_picture(scores: Scores, index: int) -> RGBImage:
    result = scores.results[index]
    image = decode_image(result.image.path.read_bytes(), max_pixels=2**40)
    return draw_judged(image, result, scores.per_image[index])


def _gallery(scores: Scores) -> list[dict[str, str]]:
    order = sorted(range(len(scores.results)), key=lambda index: _goodness(scores.per_image[index]))
    gallery = []
    for index in order[:_GALLERY_SIZE]:
        picture = _judged_picture(scores, index)
        jpeg = encode_jpeg(shrink(picture, _GALLERY_SIDE_PX), quality=85)
        gallery.append(
            {
                "name": scores.results[index].image.path.name,
                "caption": _caption(scores.per_image[index]),
                "base64": base64.b64encode(jpeg).decode(),
            }
        )
    return gallery


def _goodness(image: ImageScores) -> tuple[float, float]:
    return image.counts[0.5].f1, image.jaccard


def _caption(image: ImageScores) -> str:
    half = image.counts[0.5]
    return (
        f"{half.true_positives} right, {half.false_positives} wrong, {half.false_negatives} missed, "
        f"Jaccard {image.jaccard:.3f}"
    )
