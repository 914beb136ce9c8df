"""``circles.detectors.guarded_process`` with a detector to which some pictures are deadly, by their width."""

import ctypes
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from circles.detection import Detection, DetectorInfo
from circles.detectors import _LOADERS
from circles.imaging import RGBImage
from serve_app.processes import ROOT
from tests.pictures import encode

KILLED, CRASHES, NEVER_ENDS, EATS_MEMORY = 201, 202, 203, 204  # px


def picture(width: int) -> bytes:
    """A small picture of this width."""
    return encode(np.zeros((16, width, 3), np.uint8))


class DeadlyDetector:
    """Finds nothing in all other pictures."""

    info = DetectorInfo("deadly", "1")

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        for image in images:
            _meet(image.shape[1])
        return [[] for _ in images]


def _meet(width: int) -> None:
    if width == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does when memory is short
    elif width == CRASHES:
        ctypes.string_at(0)
    elif width == NEVER_ENDS:
        threading.Event().wait()
    elif width == EATS_MEMORY:
        eaten = []
        while True:
            eaten.append(np.ones(2**26, np.uint8))


def take_the_place_of_hough() -> None:
    """In this process."""
    _LOADERS["hough"] = lambda _threads: DeadlyDetector()


def write_start_up_code(folder: Path) -> None:
    """Makes every detector's process deadly that is started with this folder in its PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'circles.detectors.guarded_process' in sys.orig_argv:\n"
        f"    sys.path.append({str(ROOT)!r})\n"
        "    from tests.deadly_process import take_the_place_of_hough\n"
        "    take_the_place_of_hough()\n"
    )


if __name__ == "__main__":
    from circles.detectors.guarded_process import main

    take_the_place_of_hough()
    main()
