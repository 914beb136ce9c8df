"""A detector in a process of its own, and pictures that are deadly to it."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from circles.detection import ImageDetections
from circles.detectors.encoded import open_detector
from circles.detectors.guarded import GuardedDetector
from circles.errors import DetectionFailedError, DetectorUnavailableError, WeightsError
from circles.settings import Settings
from tests import deadly_process
from tests.deadly_process import CRASHES, EATS_MEMORY, KILLED, NEVER_ENDS, picture
from tests.pictures import disc_jpeg
from tests.processes import has_ended
from tests.running import wait_until

DEADLY = (sys.executable, "-m", deadly_process.__name__)


@pytest.fixture
def deadly() -> Iterator[GuardedDetector]:
    """What takes longer than 3 s does not end."""
    settings = Settings(detector="hough", detection_timeout_s=1, hang_timeout_s=3, detector_memory_bytes=512 * 2**20)
    guarded = GuardedDetector(settings, DEADLY)
    yield guarded
    guarded.close()


def process_of(guarded: GuardedDetector) -> psutil.Process:
    assert guarded._process is not None
    return psutil.Process(guarded._process._process.pid)


def pictures_in_work(caplog: pytest.LogCaptureFixture) -> list[int]:
    """How many there were at each death."""
    told = (re.search(r"with (\d+) pictures in work", record.getMessage()) for record in caplog.records)
    return [int(match.group(1)) for match in told if match]


def test_answers_are_those_of_the_detector_itself() -> None:
    files = [disc_jpeg(1), b"no picture", disc_jpeg(2)]
    guarded = GuardedDetector(Settings())
    try:
        first, broken, second = guarded.detect(files)
        expected_first, expected_broken, expected_second = open_detector(Settings()).detect(files)
        assert (first, second) == (expected_first, expected_second)
        assert type(broken) is type(expected_broken)
        assert guarded.info == open_detector(Settings()).info
    finally:
        guarded.close()


@pytest.mark.parametrize("width", [KILLED, CRASHES, NEVER_ENDS], ids=["kill", "crash", "hang"])
def test_deadly_picture_fails_and_its_company_does_not(deadly: GuardedDetector, width: int) -> None:
    before, fails, after = deadly.detect([picture(20), picture(width), picture(21)])
    assert isinstance(fails, DetectionFailedError)
    assert isinstance(before, ImageDetections)
    assert isinstance(after, ImageDetections)


def test_picture_that_is_alone_ends_two_processes(deadly: GuardedDetector, caplog: pytest.LogCaptureFixture) -> None:
    (fails,) = deadly.detect([picture(KILLED)])
    assert isinstance(fails, DetectionFailedError)
    assert pictures_in_work(caplog) == [1, 1]


def test_deaths_in_company_are_nobodys(deadly: GuardedDetector, caplog: pytest.LogCaptureFixture) -> None:
    """The first process died of one of two, and two more of the one alone."""
    deadly.detect([picture(20), picture(KILLED)])
    assert pictures_in_work(caplog) == [2, 1, 1]


def test_picture_known_to_be_deadly_ends_no_further_process(deadly: GuardedDetector) -> None:
    deadly.detect([picture(KILLED)])
    process = process_of(deadly)
    fails, found = deadly.detect([picture(KILLED), picture(20)])
    assert isinstance(fails, DetectionFailedError)
    assert isinstance(found, ImageDetections)
    assert process_of(deadly) == process


def test_memory_without_end_is_refused_before_the_machine_has_none() -> None:
    patient = Settings(detector="hough", detection_timeout_s=60, detector_memory_bytes=512 * 2**20)
    guarded = GuardedDetector(patient, DEADLY)
    try:
        process = process_of(guarded)
        fails, found = guarded.detect([picture(EATS_MEMORY), picture(20)])
        assert isinstance(fails, DetectionFailedError)
        assert "MemoryError" in fails.detail
        assert isinstance(found, ImageDetections)
        assert process_of(guarded) == process
    finally:
        guarded.close()


def test_process_that_takes_nothing_is_replaced(deadly: GuardedDetector) -> None:
    """Stopped, with more sent to it than the connection holds."""
    process_of(deadly).suspend()
    found = deadly.detect([picture(20), bytes(8 * 2**20)])
    assert isinstance(found[0], ImageDetections)


def test_process_that_somebody_killed_convicts_nobody(deadly: GuardedDetector) -> None:
    process_of(deadly).kill()
    assert all(isinstance(outcome, ImageDetections) for outcome in deadly.detect([picture(20), picture(21)]))


def test_process_that_ended_with_nothing_in_work_died_of_no_picture(deadly: GuardedDetector) -> None:
    """Else it would be the second death of one that another process has died of."""
    deadly._deaths[hashlib.sha256(picture(20)).digest()] = 1
    process_of(deadly).kill()
    wait_until(lambda: deadly._process is not None and deadly._process.has_ended)
    assert isinstance(deadly.detect([picture(20)])[0], ImageDetections)


def test_largest_allowed_picture_fits_into_the_memory() -> None:
    width, height = 8660, 5770  # just below MAX_IMAGE_PIXELS
    rng = np.random.default_rng(1)
    noise = cv2.resize(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8), (width, height))
    guarded = GuardedDetector(Settings(detection_timeout_s=60))
    try:
        (found,) = guarded.detect([cv2.imencode(".jpg", noise)[1].tobytes()])
    finally:
        guarded.close()
    assert isinstance(found, ImageDetections)


def test_process_ends_with_the_one_that_started_it() -> None:
    """Also when that was killed, and while something never ends."""
    code = f"""
import sys
from circles.detectors.guarded import GuardedDetector
from circles.settings import Settings
guarded = GuardedDetector(Settings(detector="hough"), {DEADLY!r})
print(guarded._process._process.pid, flush=True)
guarded.detect([sys.stdin.buffer.read()])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        process = psutil.Process(int(starter.stdout.readline()))
        starter.stdin.write(picture(NEVER_ENDS))
        starter.stdin.close()
        wait_until(lambda: process.num_threads() > 1)
        starter.kill()
    wait_until(lambda: has_ended(process))


def test_interrupt_from_the_terminal_is_left_to_the_one_that_started_it(deadly: GuardedDetector) -> None:
    process = process_of(deadly)
    os.kill(process.pid, signal.SIGINT)
    assert isinstance(deadly.detect([picture(20)])[0], ImageDetections)
    assert process_of(deadly) == process


def test_error_of_loading_is_the_callers() -> None:
    program = """
from circles.detectors import _LOADERS
from circles.detectors.guarded_process import main
from circles.errors import WeightsError
def load(_threads):
    raise WeightsError("told to be damaged")
_LOADERS["hough"] = load
main()
"""
    with pytest.raises(WeightsError, match="told to be damaged"):
        GuardedDetector(Settings(detector="hough"), (sys.executable, "-c", program))


def test_process_that_is_being_started_is_not_one_that_cannot_be(deadly: GuardedDetector, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = f"""
import pathlib, runpy, time
while not pathlib.Path({str(gate)!r}).exists():
    time.sleep(0.01)
runpy.run_module({deadly_process.__name__!r}, run_name="__main__")
"""
    process_of(deadly).kill()
    deadly._program = (sys.executable, "-c", program)
    with ThreadPoolExecutor(1) as pool:
        detecting = pool.submit(deadly.detect, [picture(20)])
        try:
            wait_until(lambda: deadly._process is None)
            deadly.check()
        finally:
            gate.touch()
        assert isinstance(detecting.result()[0], ImageDetections)


def test_process_that_cannot_be_started_is_told_and_tried_again(deadly: GuardedDetector) -> None:
    process_of(deadly).kill()
    deadly._program, program = (sys.executable, "-c", "raise SystemExit(3)"), deadly._program
    with pytest.raises(DetectorUnavailableError, match="status 3"):
        deadly.detect([picture(20)])
    with pytest.raises(DetectorUnavailableError):
        deadly.check()
    deadly._program = program
    assert isinstance(deadly.detect([picture(20)])[0], ImageDetections)
    deadly.check()
