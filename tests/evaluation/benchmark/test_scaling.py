"""Scaling, with a detector that waits for a moment."""

from pathlib import Path

import pytest

from evaluation.benchmark.scaling import Burst, measure_burst, measure_replicas, measure_wake, plot_burst
from tests.pictures import disc_jpeg

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(400)]

PICTURES = (disc_jpeg(1),)
WAIT_S = 0.5


@pytest.mark.parametrize("nodes", [1, 3])
def test_replicas_that_wait_do_so_at_the_same_time(nodes: int, tmp_path: Path) -> None:
    """None runs dry while others have more than one picture, on whatever node they are."""
    found = measure_replicas(PICTURES, 3, WAIT_S, 6.0, tmp_path, nodes)
    assert found.ideal_per_s == pytest.approx(6.0)
    assert 0.75 * found.ideal_per_s < found.pictures_per_s <= 1.2 * found.ideal_per_s
    # Twice as many clients as replicas: half of them wait for the others.
    assert found.p50_s >= 1.5 * WAIT_S


def test_a_sleeping_detector_is_woken_by_the_first_upload(tmp_path: Path) -> None:
    found = measure_wake((disc_jpeg(1), disc_jpeg(2)), tmp_path)
    assert found.first_status in (201, 202)
    assert 0 < found.next_s < found.first_s, "nothing had to be woken"


@pytest.mark.parametrize("is_steady", [False, True], ids=["at once", "steady"])
def test_a_burst_brings_replicas(is_steady: bool, tmp_path: Path) -> None:
    """Twenty times as much as before, all at once or little by little."""
    found = measure_burst(PICTURES, 3, WAIT_S, 4.0, 16.0, tmp_path / "service", is_steady=is_steady)
    begin, end = found.burst
    assert end - begin == pytest.approx(16.0)
    assert found.replicas[0][1] == 1
    assert found.first_at_s(lambda count: count > 1, begin) is not None
    assert found.lost == 0
    assert min(latency for _, latency in found.answers) >= WAIT_S
    in_burst, beside = found.latencies_s(in_burst=True), found.latencies_s(in_burst=False)
    assert len(in_burst) + len(beside) == len(found.answers)
    peak = 0.8 * 3 / WAIT_S
    assert len(in_burst) >= (0.5 if is_steady else 0.9) * peak * 16
    assert len(beside) <= 2 * peak / 20 * 10
    assert min(count for _, count in found.unanswered()) == found.unanswered()[-1][1] == 0
    plot_burst(found, tmp_path / "burst.svg")
    assert (tmp_path / "burst.svg").read_text().count("<svg") == 1


def test_unanswered_requests_are_those_that_have_begun_and_not_ended() -> None:
    burst = Burst((0.0, 1.0), answers=((0.0, 4.0), (1.0, 1.0), (2.0, 0.5)), lost=0, replicas=())
    assert burst.unanswered() == [(0.0, 1), (1.0, 2), (2.0, 1), (2.0, 2), (2.5, 1), (4.0, 0)]
