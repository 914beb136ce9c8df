"""How often a spare worker is asked for; that one comes, and becomes a replica, is seen under a real Serve."""

from types import SimpleNamespace

import pytest

from deployments import spare_worker


class EnoughError(Exception):
    """Ends what goes on for ever."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between looks, of which the ninth is the last."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 9:
            raise EnoughError

    monkeypatch.setattr(spare_worker, "time", SimpleNamespace(sleep=sleep))
    return slept


def test_one_that_does_not_stay_is_asked_for_less_and_less(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = iter([[], [], [], [], ["ray::IDLE"], [], [], []])
    monkeypatch.setattr(spare_worker, "_titles_of_workers", lambda: next(workers))
    started: list[float] = []
    monkeypatch.setattr(spare_worker, "_start_worker", lambda: started.append(pauses[-1]))
    with pytest.raises(EnoughError):
        spare_worker._keep()
    assert pauses == [2, 4, 8, 16, 32, 2, 4, 8, 16]
    assert started == [2, 4, 8, 16, 2, 4, 8]


def test_a_raylet_that_cannot_is_told_once_and_asked_again(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("no such method")

    told: list[str] = []
    monkeypatch.setattr(spare_worker, "_titles_of_workers", list)
    monkeypatch.setattr(spare_worker, "_start_worker", refuse)
    monkeypatch.setattr(spare_worker.logger, "warning", lambda text, **_: told.append(text))
    with pytest.raises(EnoughError):
        spare_worker._keep()
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert told == ["no worker can be kept ready for the next replica; trying again"]
