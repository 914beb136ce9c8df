"""Contestants, measured for a moment each with a detector that costs nothing; and what measures them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from circles.detectors import load_detector
from circles.detectors.guarded import ALLOCATOR_VARIABLES
from circles.errors import BrokenImageError
from evaluation.benchmark import environments
from evaluation.benchmark.contestants import Contestant, contestants
from evaluation.benchmark.environments import NotInstallableError, environment_with
from evaluation.benchmark.limit import measure_limit
from evaluation.benchmark.load import Target
from evaluation.benchmark.measurement import Plan, WrongAnswersError, measure
from evaluation.benchmark.programs.bare import answer_of, bare_detector
from evaluation.benchmark.programs.owlvit import OwlVitShape
from evaluation.benchmark.rounds import run_rounds
from evaluation.benchmark.usage import Meter, program_of
from serve_app.processes import LocalServiceError
from tests.pictures import disc_jpeg
from tests.running import wait_until

PICTURES = (disc_jpeg(1), disc_jpeg(2))
WORK = """
import pathlib, sys, time
sys.stdin.readline()
while time.process_time() < 0.5: pass
pathlib.Path(sys.argv[1]).write_bytes(bytes(3_000_000))
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> int:
    """The detector that finds the same in every picture; how many objects."""
    monkeypatch.setenv("DETECTOR", "dummy")
    return len(load_detector("dummy").detect([np.zeros((240, 320, 3), np.uint8)])[0])


def plan(count: int) -> Plan:
    return Plan(PICTURES, (count, count), clients=4, seconds=1.0, warm_up_s=0.0, seed=1, has_latencies=True)


def named(name: str) -> Contestant:
    (contestant,) = (each for each in contestants() if each.name == name)
    return contestant


class Failing:
    """A contestant that does not start."""

    name, title, has_our_detector = "failing", "fails", True

    def __init__(self, error: Exception) -> None:
        self._error = error

    def prepare(self) -> None:
        if isinstance(self._error, NotInstallableError):
            raise self._error

    def start(self, folder: Path) -> Target:
        assert folder.is_dir()
        raise self._error

    def processes(self) -> list[psutil.Process]:
        return []

    def stop(self) -> None:
        raise AssertionError("it never started")


@pytest.mark.parametrize("name", ["plain", "template", pytest.param("least", marks=pytest.mark.serve)])
def test_a_contestant_is_started_measured_and_ended(name: str, dummy: int, tmp_path: Path) -> None:
    contestant = named(name)
    contestant.prepare()
    heard: list[str] = []
    found = measure(contestant, plan(dummy), 3, tmp_path, heard.append)
    assert (found.contestant, found.round) == (name, 3)
    assert found.pictures_per_s > 10
    assert found.cpu_ms > 0
    assert 0 < found.busiest_part <= 1
    assert found.resident_bytes > 10**7
    assert found.loopback_bytes > len(PICTURES[0])
    assert found.at_part.keys() == {"0.5", "0.8"}
    assert found.at_part["0.5"]["rate"] == pytest.approx(found.pictures_per_s / 2)
    assert 0 < found.at_part["0.8"]["p50_ms"] <= found.at_part["0.8"]["p99_ms"]
    assert heard
    assert contestant.processes() == []


def test_a_contestant_that_finds_something_else_is_no_contestant(dummy: int, tmp_path: Path) -> None:
    contestant = named("plain")
    contestant.prepare()
    with pytest.raises(WrongAnswersError, match="objects in picture 0"):
        measure(contestant, plan(dummy + 1), 0, tmp_path, lambda _: None)
    assert contestant.processes() == []


@pytest.mark.parametrize("error", [NotInstallableError("no such package"), LocalServiceError("port taken")])
def test_who_cannot_take_part_is_left_out_with_the_reason(error: Exception, dummy: int) -> None:
    rounds = run_rounds([Failing(error)], plan(dummy), 2, 0, lambda _: None, has_limit=False)
    assert rounds.skipped == {"failing": str(error)}
    assert rounds.measurements == ()
    assert rounds.limits == ()


def test_every_round_has_its_own_order(dummy: int) -> None:
    heard: list[str] = []
    some = [Failing(LocalServiceError("port taken"))]
    found = run_rounds(some, plan(dummy), 2, 0, heard.append)
    assert [each.round for each in found.limits] == [0, 1]
    assert any("round 2 of 2: limit" in line for line in heard)


def test_the_limit_counts_what_bare_processes_do(dummy: int) -> None:
    found = measure_limit(PICTURES, seconds=0.5, processes=2, batch_size=3)
    assert found.pictures_per_s > 10
    assert 0 < found.cpu_ms < 100
    assert found.call_ms > 0
    assert found.resident_bytes > 10**7
    # Two processes of one thread each use no more than two cores.
    assert found.pictures_per_s * found.cpu_ms / 1000 <= 2.2


@pytest.mark.parametrize("name", ["plain", "template"])
def test_contestants_are_given_what_our_detectors_are_given(
    name: str, dummy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what somebody chose for all of them stays."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    contestant = named(name)
    contestant.prepare()
    contestant.start(tmp_path)
    try:
        environments = [process.environ() for process in contestant.processes()]
    finally:
        contestant.stop()
    assert environments
    for environment in environments:
        assert ALLOCATOR_VARIABLES.items() - environment.items() == {("MALLOC_ARENA_MAX", "1")}
        assert environment["MALLOC_ARENA_MAX"] == "2"


def test_the_limit_is_given_what_our_detectors_are_given(dummy: int) -> None:
    def has_variables(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.environ().items() >= ALLOCATOR_VARIABLES.items()
        return False

    before = dict(os.environ)
    with ThreadPoolExecutor(1) as pool:
        measured = pool.submit(measure_limit, PICTURES, seconds=0.5, processes=2, batch_size=1)
        wait_until(lambda: sum(map(has_variables, psutil.Process().children())) >= 2)
        measured.result()
    assert dict(os.environ) == before


def test_bare_answers_have_what_the_service_answers_by_default(dummy: int) -> None:
    (outcome,) = bare_detector().detect([PICTURES[0]])
    answer = answer_of(outcome)
    assert (answer["width"], answer["height"], answer["count"]) == (320, 240, dummy)
    with pytest.raises(BrokenImageError):
        answer_of(bare_detector().detect([PICTURES[0][:500]])[0])


def test_the_stand_in_has_the_size_of_owl_vit() -> None:
    network = OwlVitShape().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(153e6, rel=0.01)
    with torch.inference_mode():
        logits, boxes = network(torch.zeros((1, 3, 768, 768)), torch.zeros((1, 16), dtype=torch.long))
    assert logits.shape == (1, 576)
    assert boxes.shape == (1, 576, 4)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process whose child works when it is told to, and stays afterwards."""
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORK!r}, {str(tmp_path / 'written')!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate("\n")


def test_a_meter_counts_what_processes_and_their_children_use(worker: "subprocess.Popen[str]") -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    process = psutil.Process(worker.pid)
    wait_until(lambda: bool(process.children()))
    meter = Meter(lambda: [process])
    worker.stdin.write("\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "done\n"
    used = meter.read()
    assert 0.3 < used.cpu_s < 1.5
    assert used.busiest_part > 0.9
    assert used.cpu_s_by_program.keys() == {Path(sys.executable).name}
    assert 3_000_000 <= used.io_bytes < 4_000_000
    assert used.resident_bytes > 10**6


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["ray::ServeReplica:circles:Ingress"], "Ingress"),
        (["ray::ServeReplica:circles:Detector.handle_request"], "Detector"),
        (["ray::ServeController.listen_for_change", ""], "ServeController"),
        (["/opt/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x"], "raylet"),
        (["/usr/bin/python3.11", "-u", "/opt/ray/dashboard/agent.py", "--port=1"], "agent.py"),
        (["/opt/bin/python", "/opt/bin/serve", "run"], "serve"),
        (["python", "-m", "deployments.kserve_model", "--http_port=1"], "deployments.kserve_model"),
        (["python", "-B", "-c", "from multiprocessing.forkserver import main; main(8)"], "multiprocessing.forkserver"),
        (["python3", "-c", "print(1)"], "python3"),
        (["python3"], "python3"),
        (["nginx: worker process"], "nginx"),
        ([], "ending"),
    ],
)
def test_programs_are_called_what_people_know_them_by(command: list[str], program: str) -> None:
    assert program_of(command) == program


def test_packages_that_are_not_to_be_had_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(environments, "_project_requirements", list)
    with pytest.raises(NotInstallableError, match="install"):
        environment_with("absent", [f"absent @ file://{tmp_path}/absent-1.0-py3-none-any.whl"])
    assert not (tmp_path / "absent" / "installed").exists()
