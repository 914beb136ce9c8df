"""What answers tell of where their time went."""

import re
from pathlib import Path

import pytest

from circles.detectors.encoded import open_detector
from deployments.async_detectors import InProcessDetector
from tests.pictures import disc_jpeg
from tests.running import running_api, settings_in


def _answered(folder: Path, *, server_timing: bool) -> str:
    settings = settings_in(folder, mode="dummy", server_timing=server_timing)
    with running_api(settings, InProcessDetector(open_detector(settings))) as api:
        answer = api.client.post("/images/", files={"file": disc_jpeg(1)})
        assert answer.status_code == 201
        return str(answer.headers.get("Server-Timing", ""))


def test_the_stages_of_an_upload_are_told_when_wanted(tmp_path: Path) -> None:
    header = _answered(tmp_path, server_timing=True)
    told = {name: float(duration) for name, duration in re.findall(r"([\w-]+);dur=([\d.]+)", header)}
    total = told.pop("total")
    assert {"receive", "check", "file-beside", "transaction", "response"} <= told.keys()
    on_the_way = sum(duration for name, duration in told.items() if not name.endswith("-beside"))
    assert 0 < on_the_way <= total


def test_nothing_is_told_by_default(tmp_path: Path) -> None:
    assert not _answered(tmp_path, server_timing=False)


@pytest.mark.parametrize("count", [1, 3])
def test_a_picture_s_stages_are_what_its_batch_took(count: int) -> None:
    """Its own decoding and detecting, and the rest as time that it waited for the others."""
    detector = open_detector(settings_in(Path(), mode="dummy"))
    for outcome in detector.detect([disc_jpeg(seed) for seed in range(count)]):
        assert not isinstance(outcome, Exception)
        assert outcome.seconds.keys() == {"decode", "detect", "batch"}
        assert all(seconds >= 0 for seconds in outcome.seconds.values())
        assert outcome.seconds["decode"] > 0
