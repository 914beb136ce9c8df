"""The load generator, against small applications whose behaviour is known."""

import asyncio
import hashlib
import itertools
import math
import threading
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, Response, UploadFile

from circles.imaging import decode_image
from evaluation.benchmark.load import (
    Closed,
    Exchange,
    Load,
    LoadResult,
    Open,
    Target,
    arrival_times,
    run_load,
    started_load,
)
from evaluation.benchmark.pictures import drawn_pictures, pictures_in, unique_jpeg
from serve_app.processes import free_port
from tests.pictures import disc_jpeg
from tests.running import running_app, wait_until

STALL_S = 1.5
SLOW_S = 3.0
WORK_S = 0.02


class Counting:
    """An application that knows what it was asked; it can stand still for a while."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.types: set[str] = set()
        self.stalls_at = math.inf
        self.stall = (math.inf, math.inf)
        """When (monotonic) it began to stand still, and ended."""
        self.app = FastAPI()
        self._alone = asyncio.Lock()
        self.app.post("/form")(self._form)
        self.app.post("/raw")(self._raw)
        self.app.post("/alone")(self._one_at_a_time)
        self.app.get("/nothing")(self._nothing)
        self.app.post("/busy")(self._busy)
        self.app.post("/slow")(self._slow)

    async def _form(self, file: UploadFile) -> dict[str, int]:
        self._note(await file.read(), file.content_type or "")
        if len(self.digests) == self.stalls_at:
            began = time.monotonic()
            threading.Event().wait(STALL_S)  # the whole event loop, as a garbage collection would
            self.stall = (began, time.monotonic())
        return {"count": 0}

    async def _raw(self, request: Request) -> Response:
        self._note(await request.body(), request.headers["Content-Type"])
        return Response(status_code=201)

    async def _one_at_a_time(self) -> Response:
        async with self._alone:
            await asyncio.sleep(WORK_S)
        return Response(status_code=200)

    async def _nothing(self) -> dict[str, int]:
        self._note(b"", "")
        return {}

    async def _busy(self) -> Response:
        return Response(status_code=429)

    async def _slow(self) -> Response:
        await asyncio.sleep(SLOW_S)
        return Response(status_code=200)

    def _note(self, body: bytes, media_type: str) -> None:
        self.digests.append(hashlib.sha256(body).hexdigest())
        self.types.add(media_type)


@pytest.fixture
def counting() -> Iterator[tuple[Counting, str]]:
    counting = Counting()
    with running_app(counting.app) as url:
        yield counting, url


PICTURES = (disc_jpeg(1), disc_jpeg(2))


def test_a_unique_picture_has_other_bytes_and_the_same_pixels() -> None:
    first, second = (unique_jpeg(PICTURES[0], number) for number in (0, 2**128 - 1))
    assert len({PICTURES[0], first, second}) == 3
    assert len(first) == len(second) == len(PICTURES[0]) + 36
    pixels = [decode_image(each, 10**6) for each in (PICTURES[0], first, second)]
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] == pixels[2]).all()


def test_only_jpegs_are_made_unique() -> None:
    with pytest.raises(ValueError, match="JPEG"):
        unique_jpeg(b"\x89PNG\r\n\x1a\n", 1)


def test_drawn_pictures_are_those_of_every_run() -> None:
    assert drawn_pictures(2) == drawn_pictures(2)
    assert len(set(drawn_pictures(3))) == 3


def test_pictures_of_a_folder_are_its_first_jpegs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "b.jpg").write_bytes(PICTURES[0])
    (folder / "a.jpeg").write_bytes(PICTURES[1])
    (folder / "c.jpg").write_bytes(PICTURES[0] + bytes(200_000))
    (folder / "notes.txt").write_text("no picture")
    assert pictures_in(folder, 8) == (PICTURES[1], PICTURES[0])
    assert pictures_in(folder, 1) == (PICTURES[1],)
    with pytest.raises(ValueError, match="no JPEG"):
        pictures_in(folder, 8, max_bytes=10)


@pytest.mark.parametrize(("path", "form_field"), [("form", "file"), ("raw", None)])
def test_every_request_carries_other_bytes(counting: tuple[Counting, str], path: str, form_field: str | None) -> None:
    application, url = counting
    load = Load(Target(f"{url}/{path}", form_field), PICTURES, Closed(4), seconds=1.0, processes=2)
    result = run_load(load)
    assert result.statuses.keys() == {200 if form_field else 201}
    assert len(application.digests) == len(result.exchanges) > 10
    assert len(set(application.digests)) == len(application.digests)
    assert application.types == {"image/jpeg"}


def test_requests_without_pictures_have_no_body(counting: tuple[Counting, str]) -> None:
    application, url = counting
    run_load(Load(Target(f"{url}/nothing", method="GET"), (), Closed(1), seconds=0.3))
    assert set(application.digests) == {hashlib.sha256(b"").hexdigest()}


def test_a_closed_loop_finds_what_a_service_can_do(counting: tuple[Counting, str]) -> None:
    """One request at a time of 20 ms each: fewer than 50 a second, and with four clients each waits for all four."""
    _, url = counting
    result = run_load(Load(Target(f"{url}/alone"), PICTURES, Closed(4), seconds=2.0, warm_up_s=0.5))
    assert result.goodput > 20
    # Of the whole run: a pause of the generator lets many answers arrive at once.
    assert len(result.exchanges) <= max(exchange.ended_s for exchange in result.exchanges) / WORK_S
    assert result.quantile_s(0.5) >= 3.5 * WORK_S
    assert result.generator_cpu_s > 0


def test_clients_begin_one_after_the_other(counting: tuple[Counting, str]) -> None:
    """Each of them is still at its first request when the load ends."""
    _, url = counting
    result = run_load(Load(Target(f"{url}/slow"), PICTURES, Closed(4, begin_s=0.4), seconds=SLOW_S - 1))
    assert len(result.exchanges) == 4
    for index, exchange in enumerate(result.exchanges):
        assert exchange.intended_s >= 0.1 * index - 0.01  # later only on a busy machine


def test_an_open_loop_charges_a_stall_to_all_who_came_meanwhile(counting: tuple[Counting, str]) -> None:
    application, url = counting
    application.stalls_at = 30
    rate = 50.0
    result = run_load(Load(Target(f"{url}/form"), PICTURES, Open(rate, "constant"), seconds=4.0))
    assert len(result.exchanges) == 200
    assert max(exchange.latency_s for exchange in result.exchanges) >= STALL_S
    # The 75 that should have begun during the stall waited for its end: for half of it, on average.
    began_s, ended_s = (at - result.began_at_s for at in application.stall)
    waited = [exchange for exchange in result.exchanges if began_s <= exchange.intended_s < ended_s]
    assert len(waited) >= 0.7 * STALL_S * rate
    assert all(exchange.ended_s >= ended_s for exchange in waited)
    mean_s = sum(exchange.latency_s for exchange in waited) / len(waited)
    assert mean_s == pytest.approx((ended_s - began_s) / 2, rel=0.6)


def test_a_latency_counts_from_when_its_request_should_have_begun(counting: tuple[Counting, str]) -> None:
    """Where but one request may be open, those that have to wait for their turn are charged the wait."""
    _, url = counting
    rate = 2 / WORK_S
    load = Load(Target(f"{url}/alone"), PICTURES, Open(rate, "constant", most_open=1), seconds=1.0)
    result = run_load(load)
    last = result.exchanges[-1]
    assert last.sent_s - last.intended_s > 0.5
    assert last.latency_s > last.sent_s - last.intended_s
    assert result.sent_late_s() > 0.5


def test_refusals_count_as_answers_but_not_as_good_ones(counting: tuple[Counting, str]) -> None:
    _, url = counting
    result = run_load(Load(Target(f"{url}/busy"), PICTURES, Closed(1), seconds=0.5))
    assert result.rate > 0
    assert result.goodput == 0
    assert math.isnan(result.quantile_s(0.5))
    assert result.quantile_s(0.5, good_only=False) > 0


def test_what_nobody_answers_is_told_as_such() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    result = run_load(Load(Target(url), PICTURES, Open(10, "constant"), seconds=0.5))
    assert result.statuses == {0: 5}
    assert result.failures == {"ClientConnectorError": 5}


def test_a_request_is_given_up_after_its_timeout(counting: tuple[Counting, str]) -> None:
    _, url = counting
    result = run_load(Load(Target(f"{url}/alone"), PICTURES, Closed(1), seconds=0.2, timeout_s=WORK_S / 4))
    assert result.failures.keys() == {"TimeoutError"}


def test_a_load_runs_beside_whoever_started_it(counting: tuple[Counting, str]) -> None:
    application, url = counting
    with started_load(Load(Target(f"{url}/form"), PICTURES, Closed(1), seconds=1.0)) as running:
        wait_until(lambda: len(application.digests) > 3)
        assert running.result().goodput > 0


def test_arrivals_are_as_many_as_the_rate_says() -> None:
    constant = arrival_times(Open(20, "constant"), 2.0)
    assert constant == pytest.approx([index / 20 for index in range(40)])
    poisson = arrival_times(Open(200, "poisson", seed=1), 10.0)
    assert poisson == sorted(poisson) == arrival_times(Open(200, "poisson", seed=1), 10.0)
    assert len(poisson) == 2000
    assert poisson != arrival_times(Open(200, "poisson", seed=2), 10.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(poisson)]
    # Exponential gaps have a standard deviation as large as their mean.
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.1)


def test_rates_that_change_do_so_on_a_straight_line() -> None:
    growing = arrival_times(Open(0.0, "constant", last_rate=20.0), 10.0)
    assert len(growing) == 100
    # A quarter of them comes in the first half of the time.
    assert sum(time < 5.0 for time in growing) == 25
    falling = arrival_times(Open(20.0, seed=1, last_rate=0.0), 100.0)
    assert len(falling) == 1000
    assert falling == sorted(falling)
    assert 0 <= falling[0] < falling[-1] < 100
    assert sum(time < 50.0 for time in falling) == pytest.approx(750, abs=40)


def test_clients_and_rates_are_spread_over_processes() -> None:
    load = Load(Target(""), (), Closed(5, begin_s=0.5), seconds=1.0, processes=3)
    assert [part.pattern for part in load.parts()] == [Closed(2, 0.5), Closed(2, 0.5), Closed(1, 0.5)]
    patterns = [part.pattern for part in Load(Target(""), (), Open(9.0), seconds=1.0, processes=2).parts()]
    assert patterns == [Open(4.5, seed=0, most_open=2048), Open(4.5, seed=1, most_open=2048)]
    steady, other = (part.pattern for part in Load(Target(""), (), Open(9.0, last_rate=3.0), 1.0, processes=2).parts())
    assert steady == Open(4.5, seed=0, most_open=2048, last_rate=1.5)
    assert other == Open(4.5, seed=1, most_open=2048, last_rate=1.5)


def test_rates_and_latencies_leave_out_the_warm_up() -> None:
    exchanges = (
        Exchange(0.0, 0.0, 0.9, 200),  # begun and ended in the warm-up
        Exchange(0.9, 0.9, 1.5, 200),  # ended after it: counts for the rate alone
        Exchange(1.5, 1.6, 2.5, 201),
        Exchange(2.0, 2.0, 2.2, 503),
        Exchange(2.5, 2.5, 3.5, 200),  # ended after the load: counts for latencies alone
    )
    result = LoadResult(exchanges, seconds=3.0, warm_up_s=1.0, generator_cpu_s=0.0, began_at_s=0.0)
    assert result.goodput == pytest.approx(1.0)
    assert result.rate == pytest.approx(1.5)
    assert result.quantile_s(1.0) == pytest.approx(1.0)
    assert result.quantile_s(0.0) == pytest.approx(1.0)
    assert result.quantile_s(0.0, good_only=False) == pytest.approx(0.2)
    assert result.sent_late_s(1.0) == pytest.approx(0.1)
