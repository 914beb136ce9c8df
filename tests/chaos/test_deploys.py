"""`serve deploy` under ten uploads a second: a new version costs nobody an answer, a broken one changes nothing."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx2
import pytest
import yaml

from circles.storage.records import image_id_of
from tests.chaos.steady import Steady, steady_uploads
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(400)]

DRAINING = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"}
"""As ``serve.env`` has it; other tests are in a hurry."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    folder = tmp_path_factory.mktemp("deploys")
    with running_serve(folder, DETECTOR_MAX_REPLICAS="1", **DRAINING) as service:
        yield service


def deploy(service: RunningServe, changes: dict[str, Any]) -> None:
    """Gives Serve the service's own configuration, its application changed so."""
    config = yaml.safe_load(service.local.config_path.read_text())
    config["applications"][0].update(changes)
    service.deploy(config)


def has_setting(url: str, name: str, value: object) -> bool:
    try:
        response = httpx2.get(f"{url}/config", timeout=60)
    except httpx2.HTTPError:
        return False
    return bool(response.status_code == 200 and response.json()[name] == value)


def status_of(service: RunningServe) -> str:
    return str(service.local.application_status().get("status"))


def assert_all_were_answered(service: RunningServe, steady: Steady) -> None:
    assert not steady.refusals, f"{steady.failures} of {len(steady.answers)}: {steady.refusals}"
    with service.client() as client:
        for image_bytes in steady.acknowledged:
            assert client.get(f"/images/{image_id_of(image_bytes)}/content").content == image_bytes


def test_new_version_costs_nobody_an_answer(service: RunningServe) -> None:
    """The one ingress goes before its successor comes: what is sent meanwhile waits in front."""
    before = service.replica_pids()
    with steady_uploads(service.url, first_seed=0) as steady:
        wait_until(lambda: len(steady.acknowledged) >= 20, timeout_s=60)
        deploy(service, {"args": {"max_pending": 999}})
        wait_until(partial(has_setting, service.url, "max_pending", 999), timeout_s=120)
        wait_until(lambda: status_of(service) == "RUNNING", timeout_s=60)
        answered = len(steady.acknowledged)
        wait_until(lambda: len(steady.acknowledged) >= answered + 20, timeout_s=60)
    # The old one gave its lock back a moment before its process ends.
    wait_until(lambda: service.replica_pids()["Ingress"].isdisjoint(before["Ingress"]), timeout_s=60)
    assert_all_were_answered(service, steady)


BROKEN: dict[str, dict[str, Any]] = {
    "setting that is refused": {"args": {"detector": "nonsense"}},
    "code that cannot be imported": {"import_path": "serve_app.absent:build_app"},
    "constructor that raises": {"args": {"database_url": "sqlite:////proc/absent/db.sqlite3"}},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN.keys())
def test_broken_version_is_refused_and_the_old_one_goes_on(service: RunningServe, changes: dict[str, Any]) -> None:
    before = service.replica_pids()
    with steady_uploads(service.url, first_seed=10_000) as steady:
        deploy(service, changes)
        wait_until(lambda: status_of(service) == "DEPLOY_FAILED", timeout_s=120)
        answered = len(steady.acknowledged)
        wait_until(lambda: len(steady.acknowledged) >= answered + 20, timeout_s=60)
    assert_all_were_answered(service, steady)
    # What was started of the broken one may still be ending.
    wait_until(lambda: service.replica_pids()["Ingress"] == before["Ingress"], timeout_s=60)
