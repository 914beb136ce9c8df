"""The reconciler's end."""

import asyncio
import threading
from pathlib import Path

import pytest

from circles.storage.records import RecordBook
from deployments.services import open_services
from tests.fakes import FixedDetector, GatedDetector
from tests.running import settings_in


def test_nothing_is_closed_under_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the replica's end the data folder may be another's, who would not know of it."""
    has_begun, may_end, has_ended = threading.Event(), threading.Event(), threading.Event()

    def sweep(*_: object) -> int:
        has_begun.set()
        may_end.wait(30)
        has_ended.set()
        return 0

    monkeypatch.setattr(RecordBook, "sweep", sweep)

    async def run_and_end() -> None:
        services = open_services(settings_in(tmp_path), GatedDetector(FixedDetector()), holder="a test")
        async with services.running():
            await asyncio.to_thread(has_begun.wait, 30)
            asyncio.get_running_loop().call_later(0.1, may_end.set)
        assert has_ended.is_set()

    asyncio.run(run_and_end())
