"""``python -m evaluation``: judges a detector, or a running service, on annotated pictures and writes a report."""

import contextlib
import os
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NoReturn, cast, get_args

import httpx2
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from circles.detectors import DetectorName
from circles.settings import Settings
from evaluation.coco import Dataset, DatasetError, load_dataset, write_scenes
from evaluation.report import Comparison, compare, headline_rows, load_earlier, write_report
from evaluation.run import run
from evaluation.scenes import SceneOptions, draw_scene
from evaluation.scores import DEFAULT_IOUS, score
from evaluation.sources import STORE_MIN_SCORE, InProcessSource, Source, SourceError, opened_service

_ROOT = Path(__file__).resolve().parent.parent
_DATASETS = (_ROOT / "evaluation" / "dataset", _ROOT.parent / "shared" / "datasets" / "coins" / "val")
_OUTPUT = _ROOT / "evaluation" / "output"
_SCENE_COUNT = 50

_SceneKind = Literal["scenes", "whole-scenes", "clutter"]
_SCENE_KINDS: dict[_SceneKind, SceneOptions] = {
    "scenes": SceneOptions(),
    "whole-scenes": SceneOptions(may_be_cut=False),
    "clutter": SceneOptions(objects=(0, 0), clutter=(2, 10)),
}

console = Console(soft_wrap=True)


def main(
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="COCO folder. Default: evaluation/dataset, else ../shared/datasets/coins/val, else drawn scenes."
        ),
    ] = None,
    scenes: Annotated[int | None, typer.Option(min=1, help="Draw so many scenes and judge on them.")] = None,
    only_clutter: Annotated[bool, typer.Option("--only-clutter", help="... without any round thing.")] = False,
    only_whole: Annotated[bool, typer.Option("--only-whole", help="... whose things no border cuts.")] = False,
    detector: Annotated[
        str | None, typer.Option(help=f"Measure this detector in-process: {', '.join(get_args(DetectorName))}.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the service at this address; its key, if any, in API_KEY.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    iou: Annotated[
        list[float] | None, typer.Option(help="Overlap from which a detection is right, above 0 and at most 1.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Instead of the default of what is measured.")
    ] = None,
    compare_with: Annotated[
        Path | None, typer.Option("--compare", help="metrics.json of an earlier run on the same pictures.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first bad picture instead of leaving it out.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes to spread in-process work over.")] = 1,
    more_ious: Annotated[list[float] | None, typer.Argument(hidden=True)] = None,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to spread in-process work over.")] = None,
) -> None:
    """Judge a detector by what people annotated, and write a report."""
    _check_arguments(detector, url, min_score, iou, more_ious)
    if dataset is not None and scenes is not None:
        raise typer.BadParameter("either --dataset or --scenes")
    if (only_clutter or only_whole) and scenes is None:
        raise typer.BadParameter("--only-clutter and --only-whole are for --scenes")
    if only_clutter and only_whole:
        raise typer.BadParameter("either --only-clutter or --only-whole")
    kind: _SceneKind = "clutter" if only_clutter else "whole-scenes" if only_whole else "scenes"
    ious = [*(iou or DEFAULT_IOUS), *(more_ious or [])]
    try:
        with contextlib.ExitStack() as stack:
            data = _dataset(dataset, strict) if scenes is None else _drawn_scenes(scenes, kind)
            source: Source
            if url is not None:
                source = stack.enter_context(opened_service(url, os.environ.get("API_KEY")))
            else:
                source = InProcessSource(cast(DetectorName, detector or Settings().detector), jobs, ray)
            has_gaps = _judge(data, source, output, ious, min_score, compare_with)
    except DatasetError as error:
        _fail(error)
    except SourceError as error:
        _fail(error)
    except BrokenProcessPool:
        _fail("a process of --jobs was killed, perhaps for want of memory")
    except httpx2.HTTPError as error:
        _fail(f"{url}: {error}")
    if has_gaps:
        raise typer.Exit(2)


def _check_arguments(
    detector: str | None,
    url: str | None,
    min_score: float | None,
    iou: list[float] | None,
    more_ious: list[float] | None,
) -> None:
    if detector is not None and url is not None:
        raise typer.BadParameter("either --detector or --url")
    if detector is not None and detector not in get_args(DetectorName):
        raise typer.BadParameter(f"--detector is one of {', '.join(get_args(DetectorName))}")
    if min_score is not None and min_score < STORE_MIN_SCORE:
        raise typer.BadParameter(f"--min-score is at least {STORE_MIN_SCORE:g}: below that nothing is kept")
    if not all(0 < each <= 1 for each in [*(iou or []), *(more_ious or [])]):
        raise typer.BadParameter("--iou is above 0 and at most 1")
    if more_ious and not iou:  # they may stand behind one --iou, as well as behind one each
        raise typer.BadParameter(f"unexpected: {more_ious}")


def _judge(
    data: Dataset,
    source: Source,
    output: Path | None,
    ious: list[float],
    min_score: float | None,
    compare_with: Path | None,
) -> bool:
    """Runs, prints and writes the report; whether pictures are missing from it for want of an answer."""
    earlier = None if compare_with is None else load_earlier(compare_with)
    for problem in data.problems:
        console.print(f"[yellow]left out:[/] {escape(str(problem))}")
    outcome = run(data, source, console)
    for failure in outcome.failures:
        console.print(f"[red]no answer:[/] {escape(str(failure))}")
    if not outcome.results:
        _fail("there is no picture with an answer, so nothing to report")
    scores = score(outcome.results, source.min_score if min_score is None else min_score, ious)
    comparison = None if earlier is None else compare(scores, earlier)
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = output or _OUTPUT / f"{data.name}-{source.name}-{time}"
    metrics = write_report(folder, data, source, outcome, scores, comparison)
    console.print(f"{source.description}, on {data.folder}", highlight=False)
    console.print(_table(metrics, comparison))
    console.print("seconds an image: median {median:.4f}, 95th percentile {p95:.4f}".format(**metrics["seconds"]))
    console.print(f"report: {folder / 'report.html'}", highlight=False)
    return bool(outcome.failures) or outcome.is_interrupted


def _dataset(folder: Path | None, is_strict: bool) -> Dataset:
    """The dataset asked for, else the one at hand, else drawn scenes."""
    chosen = folder or next((candidate for candidate in _DATASETS if candidate.is_dir()), None)
    if chosen is None:
        console.print(f"no dataset: drawing {_SCENE_COUNT} scenes")
        return _drawn_scenes(_SCENE_COUNT, "scenes")
    return load_dataset(chosen, is_strict=is_strict)


def _drawn_scenes(count: int, kind: _SceneKind) -> Dataset:
    folder = _OUTPUT / f"drawn-{kind}"
    write_scenes(folder, (draw_scene(seed, _SCENE_KINDS[kind]) for seed in range(count)))
    return load_dataset(folder)


def _table(metrics: dict[str, object], comparison: Comparison | None) -> Table:
    table = Table("measure")
    for column in ("value", "95 % interval"):
        table.add_column(column, justify="right")
    if comparison is not None:
        for column in (f"difference to {comparison.name}", "95 % interval"):
            table.add_column(column, justify="right")
    for row in headline_rows(metrics, comparison):
        cells = [row.name, row.value, row.interval]
        table.add_row(*cells, *([row.difference, row.difference_interval] if comparison else []))
    return table


def _fail(reason: object) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(reason))}")
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
