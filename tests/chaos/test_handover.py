"""A replica that begins while its predecessor has the data folder: requests wait, and nobody else is taken for that."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from circles.errors import DataFolderLockedError
from circles.geometry import Circle
from circles.storage.lock import DataFolderLock
from deployments.api import create_api
from deployments.handover import LateApi, has_predecessor
from deployments.services import Services, open_services
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import running_app, settings_in

HOLD = (
    "import sys; from pathlib import Path; from circles.storage.lock import DataFolderLock;"
    "lock = DataFolderLock(Path(sys.argv[1]), 'another one'); print('locked', flush=True); sys.stdin.read()"
)
"""A program that has the folder of its argument until its input ends."""

AS_SIBLING = (
    "import sys; from pathlib import Path; from deployments.handover import has_predecessor; from circles.settings "
    "import Settings; print(has_predecessor(Settings(database_url=sys.argv[1], storage_url=sys.argv[2])))"
)


@contextmanager
def held_by_a_child(folder: Path) -> Iterator[None]:
    arguments = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield
        process.communicate()


def test_predecessor_is_a_process_of_the_same_parent(tmp_path: Path) -> None:
    """As replicas of one Ray node are, and two services never."""
    settings = settings_in(tmp_path)
    assert not has_predecessor(settings)
    with held_by_a_child(tmp_path):
        assert not has_predecessor(settings)  # our child, and so not our sibling
        addresses = [settings.database_url, settings.storage_url]
        said = subprocess.run(
            [sys.executable, "-c", AS_SIBLING, *addresses], capture_output=True, text=True, check=True
        )
        assert said.stdout == "True\n"
    assert not has_predecessor(settings)


def late_api(folder: Path, may_open: threading.Event) -> LateApi:
    settings = settings_in(folder)

    def open_late() -> Services:
        assert may_open.wait(30)
        detector = GatedDetector(FixedDetector((Circle(90, 110, 40), 0.9)))
        return open_services(settings, detector, holder="a successor")

    return LateApi(open_late, lambda services: create_api(services, is_behind_serve=False))


def test_requests_wait_for_the_handover(tmp_path: Path) -> None:
    may_open = threading.Event()
    late = late_api(tmp_path, may_open)
    with running_app(late) as url, ThreadPoolExecutor(4) as pool:  # type: ignore[arg-type] # any ASGI application will do
        uploads = [
            pool.submit(httpx2.post, f"{url}/images/", files={"file": disc_jpeg(seed)}, timeout=30) for seed in range(4)
        ]
        late.check_health()
        assert not any(upload.done() for upload in uploads)
        may_open.set()
        assert [upload.result().status_code for upload in uploads] == [201] * 4
        with pytest.raises(DataFolderLockedError, match="a successor"):
            DataFolderLock(tmp_path, "somebody else")
    DataFolderLock(tmp_path, "the next one").release()  # given back at the end


def test_handover_that_does_not_come_is_told(tmp_path: Path) -> None:
    def refuse() -> Services:
        raise DataFolderLockedError("the data folder is in use by one that does not go")

    late = LateApi(refuse, lambda services: create_api(services, is_behind_serve=False))
    with running_app(late) as url:  # type: ignore[arg-type] # as above
        answer = httpx2.get(f"{url}/images/", timeout=30)
    assert (answer.status_code, answer.json()["title"]) == (503, "Unavailable")
    assert answer.headers["Retry-After"]
    with pytest.raises(DataFolderLockedError):
        late.check_health()
