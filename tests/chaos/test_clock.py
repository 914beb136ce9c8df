"""A clock that jumps: nothing is lost, and what is pending is finished.

libfaketime stands between the application's process and the system's clock, and reads from a file what to add to it.
Only the wall clock jumps, as a real one does; the monotonic one goes on. (Ray does not start under it: with the
monotonic clock left alone, libfaketime 0.9.10 refuses `clock_nanosleep`.)
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest

from circles.storage.records import image_id_of
from serve_app.processes import free_port
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.servers import absent

pytestmark = pytest.mark.timeout(300)

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
_HOUR = timedelta(hours=1)


class Clocked:
    """The application, whose clock and whose detector obey."""

    def __init__(self, process: "subprocess.Popen[str]", client: httpx2.Client, offset: Path) -> None:
        self._process = process
        self._offset = offset
        self.client = client

    def tell_detector(self, word: str) -> None:
        """To ``open`` or ``close``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def jump(self, by: timedelta) -> None:
        """The clock is off by so much from now on."""
        self._offset.write_text(f"{by.total_seconds():+.0f}")

    def upload(self, image_bytes: bytes) -> datetime:
        """When the application says that it is, at an upload; which may have to wait for the detector."""
        answer = self.client.post("/images/", files={"file": image_bytes})
        assert answer.status_code in (201, 202), answer.text
        return datetime.fromisoformat(answer.json()["created_at"]).astimezone(UTC)

    def has_done(self, image_bytes: bytes) -> bool:
        """Whether the picture was looked at."""
        return bool(self.client.get(f"/images/{image_id_of(image_bytes)}").json()["status"] == "done")

    def answers(self) -> bool:
        """Whether it has begun."""
        try:
            return self.client.get("/health").status_code == 200
        except httpx2.HTTPError:
            return False


@contextmanager
def clocked(folder: Path) -> Iterator[Clocked]:
    if not _LIBRARIES:
        absent("libfaketime is not installed (Debian: faketime)")
    offset = folder / "offset"
    offset.write_text("+0")
    clock = {
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    port = free_port()
    command = [sys.executable, "-m", "tests.chaos.clock_service", str(folder), str(port)]
    with (
        subprocess.Popen(command, env={**os.environ, **clock}, stdin=subprocess.PIPE, text=True) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        service = Clocked(process, client, offset)
        try:
            wait_until(service.answers)
            yield service
            process.communicate(timeout=30)
        finally:
            process.kill()


@pytest.mark.parametrize("jump", [_HOUR, -_HOUR], ids=["forth", "back"])
def test_clock_that_jumps_an_hour_loses_nothing(tmp_path: Path, jump: timedelta) -> None:
    """While pictures are leased for detection, and others wait for it."""
    pictures = [disc_jpeg(seed) for seed in range(12)]
    with clocked(tmp_path) as service:
        before = service.upload(pictures[0])
        service.tell_detector("close")
        for image_bytes in pictures[1:10]:  # more than are taken up at once
            service.upload(image_bytes)
        service.jump(jump)
        after = service.upload(pictures[10])
        assert abs(after - before - jump) < timedelta(minutes=5)  # the jump did reach the application
        service.tell_detector("open")
        for image_bytes in pictures[:11]:
            wait_until(partial(service.has_done, image_bytes))
        service.jump(timedelta(0))
        service.upload(pictures[11])
        for image_bytes in pictures:
            wait_until(partial(service.has_done, image_bytes))
            assert service.client.get(f"/images/{image_id_of(image_bytes)}/content").content == image_bytes
        listed = [item["image_id"] for item in service.client.get("/images/").json()["items"]]
        assert sorted(listed) == sorted(image_id_of(image_bytes) for image_bytes in pictures)
