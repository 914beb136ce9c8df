"""``python -m evaluation.cost``: what a detection costs, step by step, on one thread of this machine."""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from circles.detectors.encoded import EncodedDetector
from circles.detectors.heatmap import HeatmapDetector, place_rims
from circles.detectors.runtimes import OnnxRuntime, Runtime
from circles.imaging import decode_image, encode_jpeg
from evaluation.scenes import draw_scene

_SEED = 4
_MAX_PIXELS = 10**8
_LOADING = (
    "import time; start = time.perf_counter(); import psutil; from circles.detectors import load_detector; "
    "load_detector('{name}'); "
    "print(time.perf_counter() - start, psutil.Process().memory_info().rss / 2**20)"
)


def main(repeats: Annotated[int, typer.Option(min=3, help="Of each step; the median is shown.")] = 40) -> None:
    """Measure both forms of the learned detector on a drawn scene."""
    from circles.detectors.torch_runtime import TorchRuntime  # noqa: PLC0415  (loading is measured elsewhere)

    cv2.setNumThreads(1)
    scene = draw_scene(_SEED)
    file = encode_jpeg(scene.image, quality=92)
    height, width = scene.image.shape[:2]
    table = Table("ms, but for the last two rows", "heatmap", "heatmap-torch")
    runtimes: tuple[Runtime, ...] = (OnnxRuntime(), TorchRuntime.load())
    columns = [_steps(runtime, file, repeats) for runtime in runtimes]
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.1f}" for column in columns))
    loads = [_load(name) for name in ("heatmap", "heatmap-torch")]
    table.add_row("import and load, s", *(f"{seconds:.2f}" for seconds, _ in loads))
    table.add_row("resident then, MB", *(f"{megabytes:.0f}" for _, megabytes in loads))
    console = Console()
    console.print(f"{width} x {height} px, {len(scene.objects)} objects")
    console.print(table)


def _steps(runtime: Runtime, file: bytes, repeats: int) -> dict[str, float]:
    """Median ms of each step."""
    image = decode_image(file, _MAX_PIXELS)
    small, medium = (cv2.resize(image, size).astype(np.uint8, copy=False) for size in ((128, 96), (448, 352)))
    detector = HeatmapDetector(runtime)
    evidence = detector.evidence(image)
    guesses, heat_logits = [each.ellipse for each in evidence], [each.heat_logit for each in evidence]
    encoded = EncodedDetector(detector, _MAX_PIXELS, min_score=0.1)

    def rims() -> None:
        place_rims(runtime, image, guesses, heat_logits)

    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: decode_image(file, _MAX_PIXELS),
        "heat map at 128 px": lambda: runtime.cells(small),
        "heat map at 448 px": lambda: runtime.cells(medium),
        f"rims of {len(guesses)} proposals": rims,
        "all, from bytes to detections": lambda: encoded.detect([file]),
    }
    return {name: _median_ms(step, repeats) for name, step in steps.items()}


def _median_ms(step: Callable[[], object], repeats: int) -> float:
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def _load(name: str) -> tuple[float, float]:
    """Seconds and MB of a fresh process that loads the detector."""
    code = _LOADING.format(name=name)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    seconds, megabytes = (float(each) for each in process.stdout.split())
    return seconds, megabytes


if __name__ == "__main__":
    typer.run(main)
