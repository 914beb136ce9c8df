"""The reconciler: its patience, its sweeps, its end."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from circles.detection import Detection
from circles.imaging import RGBImage
from circles.storage.images import new_key, open_image_store
from circles.storage.records import RecordBook, image_id_of
from deployments.services import open_services
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import running_api, settings_in, wait_until


class SlowDetector(FixedDetector):
    """Takes 0.8 s for a picture."""

    def detect(self, images: Sequence[RGBImage]) -> list[list[Detection]]:
        time.sleep(0.8)
        return super().detect(images)


def test_picture_that_takes_longer_than_uploads_wait_is_done_in_the_background(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, detection_timeout_s=0.5, reconcile_period_s=0.3)
    with running_api(settings, GatedDetector(SlowDetector())) as api:
        response = api.client.post("/images/", files={"file": disc_jpeg(1)})
        assert response.status_code == 202
        wait_until(lambda: api.client.get(response.headers["Location"]).json()["status"] == "done")


def test_purge_that_fails_keeps_no_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise OverflowError("told to fail")

    monkeypatch.setattr(RecordBook, "purge", stumble)
    settings = settings_in(tmp_path, retention_days=1, orphan_grace_s=0)
    store = open_image_store(settings.storage_url)
    orphan = new_key(image_id_of(b"orphan"))
    store.save(orphan, b"orphan", "image/png")
    with running_api(settings, GatedDetector(FixedDetector())):
        wait_until(lambda: orphan not in set(store.keys_older_than(0)))


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
