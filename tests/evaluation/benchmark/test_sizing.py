"""What rates take, against sums done by hand."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.benchmark.__main__ import cli
from evaluation.benchmark.sizing import Costs, Size, size

COSTS = Costs(detecting_ms=30.0, serving_ms=6.0)


def test_one_picture_a_second_takes_one_of_each() -> None:
    assert size(1, COSTS, 40_000) == Size(1, 1, 2, 1, network_bytes_per_s=120_000)


def test_a_rate_takes_its_processor_time_and_the_rest_that_is_left_free() -> None:
    found = size(1000, COSTS, 40_000, utilisation=0.5, pod_cores=16)
    assert (found.detector_replicas, found.ingress_replicas, found.cores, found.pods) == (60, 12, 72, 5)


def test_ten_times_the_rate_takes_ten_times_as_much() -> None:
    tenth, whole = (size(rate, COSTS, 40_000, 0.6, 8) for rate in (10_000, 100_000))
    assert whole.cores == pytest.approx(10 * tenth.cores, rel=0.01)


def test_the_word_reads_what_a_run_measured(tmp_path: Path) -> None:
    measured = tmp_path / "bench.json"
    summary = {"limit": {"cpu_ms": 30.0}, "overhead_cpu_ms": 6.0, "settings": {"picture_bytes": [30_000, 50_000]}}
    measured.write_text(json.dumps(summary))
    result = CliRunner().invoke(cli, ["sizing", "1000", "--measured", str(measured), "--utilisation", "0.5"])
    assert result.exit_code == 0, result.output
    assert [cell.strip() for cell in result.output.splitlines()[-2].strip("│ ").split("│")] == [
        "1,000",
        "60",
        "12",
        "72",
        "9",
        "0.96",
        "2,628",
    ]


def test_a_run_without_the_limit_says_nothing_of_sizes(tmp_path: Path) -> None:
    measured = tmp_path / "bench.json"
    measured.write_text(json.dumps({"limit": None, "overhead_cpu_ms": None}))
    result = CliRunner().invoke(cli, ["sizing", "10", "--measured", str(measured)])
    assert result.exit_code == 2
