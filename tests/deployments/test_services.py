"""What a replica refuses to start on."""

from pathlib import Path

import pytest

from circles.errors import StorageUnavailableError
from deployments.services import _check_outlives_pod, open_services
from tests.fakes import FixedDetector, GatedDetector
from tests.running import settings_in


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")


def test_folder_that_goes_with_the_pod_is_refused(in_a_pod: None) -> None:
    settings = settings_in(Path("/absent/data"))
    with pytest.raises(StorageUnavailableError, match="mount a volume there"):
        open_services(settings, GatedDetector(FixedDetector()), holder="a test")
    assert not Path("/absent").exists()


def test_mounted_volume_is_taken(in_a_pod: None) -> None:
    if Path("/dev/shm").stat().st_dev == Path("/").stat().st_dev:
        pytest.skip("/dev/shm is no mount of its own here")
    _check_outlives_pod(Path("/dev/shm/circles/images"))


def test_outside_of_pods_every_folder_is_taken() -> None:
    _check_outlives_pod(Path("/absent/data/images"))
