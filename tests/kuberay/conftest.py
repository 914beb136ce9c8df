"""What the tests of the gateway share."""

from collections.abc import Iterator

import pytest

from tests.kuberay.mesh import Door, RunningMesh
from tests.kuberay.scaled_mesh import scaled_mesh


@pytest.fixture(scope="package")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """Gateways and pods, running."""
    with scaled_mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture
def door(mesh: RunningMesh) -> Door:
    """The gateway of overlay ``local``."""
    return mesh.doors["local"]
