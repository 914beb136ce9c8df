"""Stages, read off answers that are made up here."""

import pytest
from fastapi import FastAPI, Response, UploadFile

from evaluation.benchmark.pictures import drawn_pictures
from evaluation.benchmark.stages import STAGES, NoTimingsError, measure_stages, network_part, timings_in
from tests.pictures import disc_jpeg
from tests.running import running_app

HEADER = "receive;dur=1.000, detect;dur=6.5, transaction;dur=2.500, file-beside;dur=30.0, total;dur=12.500"


def test_durations_are_read_by_name() -> None:
    told = timings_in({"Server-Timing": HEADER})
    assert told == {"receive": 1.0, "detect": 6.5, "transaction": 2.5, "file-beside": 30.0, "total": 12.5}


@pytest.mark.parametrize("headers", [{}, {"Server-Timing": "cache;desc=hit"}], ids=["none", "others"])
def test_answers_without_timings_are_told_from_others(headers: dict[str, str]) -> None:
    with pytest.raises(NoTimingsError, match="SERVER_TIMING"):
        timings_in(headers)


def test_stages_are_means_over_different_pictures_after_a_first_round() -> None:
    sizes: list[int] = []
    contents: set[bytes] = set()
    app = FastAPI()

    @app.post("/images/", status_code=201)
    async def upload(response: Response, file: UploadFile) -> None:
        content = await file.read()
        sizes.append(len(content))
        contents.add(content)
        is_first_round = len(sizes) <= 2
        response.headers["Server-Timing"] = "receive;dur=99, total;dur=99" if is_first_round else HEADER

    with running_app(app) as url:
        found = measure_stages(f"{url}/images/", (disc_jpeg(1), disc_jpeg(2)), 5)
    assert len(contents) == len(sizes) == 7
    assert found.service_ms == pytest.approx(12.5)
    assert found.stages_ms["file-beside"] == pytest.approx(30.0)
    # What is done beside the client's way explains nothing of it.
    assert found.told_part == pytest.approx(10 / 12.5)
    assert found.client_ms > 0


def test_stages_on_the_way_of_a_client_have_a_name_each() -> None:
    assert len(set(STAGES)) == len(STAGES)
    assert not any(name.endswith("-beside") for name in STAGES)


def test_networks_are_a_part_of_detecting() -> None:
    assert 0.3 < network_part(drawn_pictures(1), repeats=1) < 1.0
