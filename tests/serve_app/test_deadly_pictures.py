"""A real Serve, and pictures that its detector dies of: they fail, and nobody else does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.deadly_process import CRASHES, EATS_MEMORY, KILLED, NEVER_ENDS, picture, write_start_up_code
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "code").mkdir()
    write_start_up_code(folder / "code")
    with running_serve(
        folder,
        PYTHONPATH=str(folder / "code"),
        DETECTOR="hough",
        DETECTOR_MAX_REPLICAS="1",
        DETECTOR_MEMORY_BYTES=str(512 * 2**20),
        DETECTION_TIMEOUT_S="2",
        HANG_TIMEOUT_S="6",
    ) as service:
        yield service


@pytest.fixture
def client(service: RunningServe) -> Iterator[httpx2.Client]:
    with service.client() as client:
        yield client


@pytest.mark.parametrize(
    ("width", "reason"),
    [
        (KILLED, "died of this picture"),
        (CRASHES, "died of this picture"),
        (NEVER_ENDS, "died of this picture"),
        (EATS_MEMORY, "MemoryError"),
    ],
    ids=["killed", "crashes", "never ends", "eats memory"],
)
def test_deadly_picture_fails_alone(service: RunningServe, client: httpx2.Client, width: int, reason: str) -> None:
    """In company of others, which are done; the replica lives on, and takes the next pictures."""
    replicas = service.replica_pids()
    company = [picture(10 * width + number) for number in range(8)]  # px
    with ThreadPoolExecutor(len(company) + 1) as pool:
        deadly = pool.submit(client.post, "/images/", files={"file": picture(width)})
        others = list(pool.map(lambda content: client.post("/images/", files={"file": content}), company))
    assert {response.status_code for response in others} <= {201, 202}
    assert deadly.result().status_code == 202
    assert _end_of(client, deadly.result())["status"] == "failed"
    assert reason in str(_end_of(client, deadly.result())["error"])
    assert {_end_of(client, response)["status"] for response in others} == {"done"}
    next_one = client.post("/images/", files={"file": picture(width + 10_000)})
    assert _end_of(client, next_one)["status"] == "done"
    assert service.replica_pids() == replicas


def _end_of(client: httpx2.Client, response: httpx2.Response) -> dict[str, object]:
    """What became of an uploaded picture."""
    body: dict[str, object] = {}

    def has_ended() -> bool:
        body.update(client.get(response.headers["Location"]).json())
        return body["status"] != "pending"

    wait_until(has_ended, timeout_s=60)
    return body


def test_memory_is_measured_against_what_was_allowed(service: RunningServe) -> None:
    """The limit is the process's own, so that neither the machine nor the pod meets its end first."""
    (detector,) = service.replica_processes("Detector")
    (process,) = detector.children()
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
    assert line.split()[3:5] == [str(512 * 2**20)] * 2
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
