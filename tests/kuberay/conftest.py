"""What tests of the gateway share, and those that run pods."""

from collections.abc import Iterator

import pytest

from tests.kuberay.mesh import Door, RunningMesh
from tests.kuberay.pods import PodNetwork, need_namespaces, pod_network
from tests.kuberay.scaled_mesh import scaled_mesh


@pytest.fixture(scope="module")
def network() -> Iterator[PodNetwork]:
    """Of pods on this machine."""
    need_namespaces()
    with pod_network() as network:
        yield network


@pytest.fixture(scope="package")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """Gateways and pods, running."""
    with scaled_mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture
def door(mesh: RunningMesh) -> Door:
    """The gateway of overlay ``local``."""
    return mesh.doors["local"]
