"""A run: every picture of a dataset given to a source, with its progress shown."""

import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from evaluation.coco import Dataset, Problem
from evaluation.scores import ImageResult
from evaluation.sources import Answer, Source

_PLAIN_LINE_PERIOD_S = 5.0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a dataset: results, pictures without an answer, and whether somebody stopped it before its end."""

    results: list[ImageResult]
    failures: list[Problem]
    is_interrupted: bool


def run(dataset: Dataset, source: Source, console: Console) -> Run:
    """Detects in every picture. Ctrl-C ends it early and keeps what was done."""
    results: list[ImageResult] = []
    failures: list[Problem] = []
    answers = source.answers(image.path for image in dataset.images)
    try:
        for image, answer in zip(dataset.images, _shown(answers, len(dataset.images), console), strict=True):
            if answer.failure is None:
                results.append(ImageResult(image, answer.detections, answer.seconds))
            else:
                failures.append(Problem(image.image_id, image.path.name, answer.failure))
    except KeyboardInterrupt:
        console.print(f"interrupted after {len(results)} of {len(dataset.images)} pictures")
        return Run(results, failures, is_interrupted=True)
    return Run(results, failures, is_interrupted=False)


def hardware() -> str:
    """The processor and how many of its cores there are."""
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        names = [line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def _shown(answers: Iterator[Answer], total: int, console: Console) -> Iterator[Answer]:
    """A bar on a terminal, a few plain lines elsewhere."""
    if console.is_terminal:
        yield from track(answers, "detecting", total=total, console=console)
        return
    last_line = -math.inf
    for done, answer in enumerate(answers, start=1):
        yield answer
        if done == total or time.monotonic() - last_line >= _PLAIN_LINE_PERIOD_S:
            console.print(f"detected in {done} of {total} pictures")
            last_line = time.monotonic()
