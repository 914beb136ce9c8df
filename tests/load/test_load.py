"""Short forms of ``python -m tests.load``: what it judges by seconds and rates is left out, for a busy machine."""

import math
from collections.abc import Iterator

import pytest

from evaluation.benchmark.load import GOOD_STATUSES
from evaluation.benchmark.pictures import drawn_pictures
from tests.load.__main__ import large_jpeg
from tests.load.overload import ANSWERS, REFUSALS, burst, overload
from tests.load.soak import soak
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(400)]

MAX_IN_FLIGHT_BYTES = 32 * 2**20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    limits = {"MAX_IN_FLIGHT": "16", "MAX_IN_FLIGHT_BYTES": str(MAX_IN_FLIGHT_BYTES)}
    with running_serve(tmp_path_factory.mktemp("serve"), DETECTOR_MAX_REPLICAS="1", **limits) as service:
        yield service


def test_more_than_it_can_do_is_refused_with_a_time_to_come_back(service: RunningServe) -> None:
    replicas = service.replica_pids()
    found = overload(service, drawn_pictures(8), seconds=5, factors=(1, 8), recovered_within=math.inf)
    assert [step.factor for step in found.steps] == [1, 8]
    for step in found.steps:
        assert set(step.statuses) <= ANSWERS, step
        assert step.statuses[201] > 0
        assert step.bare_refusals == 0
    assert found.steps[-1].statuses.keys() & REFUSALS
    assert service.replica_pids() == replicas


def test_many_large_uploads_at_once_take_no_more_memory_than_a_few(service: RunningServe) -> None:
    replicas = service.replica_pids()
    picture = large_jpeg(6 * 2**20)
    few, watched_few = burst(service, picture, uploads=4)
    many, watched_many = burst(service, picture, uploads=40)
    assert set(few.statuses) <= ANSWERS
    assert set(many.statuses) <= ANSWERS
    assert many.statuses.keys() & REFUSALS
    grown = watched_many.most_bytes("ingress") - watched_few.most_bytes("ingress")
    assert grown < 9 * MAX_IN_FLIGHT_BYTES
    assert service.replica_pids() == replicas


def test_steady_load_is_answered_and_watched(service: RunningServe) -> None:
    found = soak(service, drawn_pictures(8), rate=2, seconds=12)
    assert set(found.result.statuses) <= GOOD_STATUSES
    assert {said.split()[1] for said in found.readers_statuses} <= {"200", "204"}
    assert found.growth.keys() >= {"ingress", "detector", "detector's process", "HAProxy"}
