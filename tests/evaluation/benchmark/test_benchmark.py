"""The benchmark as it is called."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.benchmark.__main__ import COLLAPSED, cli


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--only", "ours,theirs", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "theirs" in result.output


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--pictures", str(tmp_path), "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "no JPEG" in result.output


@pytest.mark.serve
@pytest.mark.control
@pytest.mark.timeout(600)
def test_serving_costs_no_multiple_of_detecting(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--quick", "--only", "limit,ours,template,plain", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "bench.json").read_text())
    assert summary["skipped"] == {}
    assert summary["contestants"].keys() == {"ours", "template", "plain"}
    assert summary["ratios"]["ours_to_limit"] >= COLLAPSED["ours_to_limit"]
    assert summary["ratios"]["ours_to_plain"] >= COLLAPSED["ours_to_plain"]
    # Not faster than the detector alone, but for what a busy machine does to one of them.
    assert summary["ratios"]["ours_to_limit"] < 1.5
    assert summary["p50_one_client_ms"] > summary["bare_ms"] / 2
    assert summary["overhead_cpu_ms"] > 0
    assert (tmp_path / "bench.svg").is_file()
