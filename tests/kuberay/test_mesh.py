"""Who reaches what within the mesh, by the rendered policies."""

import contextlib
import socket
import ssl
from pathlib import Path

import pytest

from tests.kuberay.certificates import Authority, Credentials
from tests.kuberay.mesh import PORTS, REDIS_PORT, RunningMesh
from tests.kuberay.policies import GATEWAY

EVERYTHING = set(PORTS)


@pytest.mark.parametrize(
    ("namespace", "service_account", "ports"),
    [
        pytest.param("istio-system", "istio-ingressgateway", {8000, 9000}, id="gateway"),
        pytest.param("istio-system", "istiod", set(), id="neighbour of the gateway"),
        pytest.param("kuberay-operator", "kuberay-operator", {8265}, id="operator"),
        pytest.param("monitoring", "prometheus-k8s", {8080, 9101}, id="prometheus"),
        pytest.param("monitoring-of-others", "prometheus", set(), id="somebody else's prometheus"),
        pytest.param("circles", "circles", EVERYTHING, id="workers"),
        pytest.param("circles", "circles-head", EVERYTHING, id="head"),
        pytest.param("circles", "default", set(), id="another account in the namespace"),
        pytest.param("circles-serving", "default", set(), id="KServe"),
        pytest.param("default", "circles", set(), id="the same account elsewhere"),
    ],
)
def test_each_account_reaches_its_ports(
    mesh: RunningMesh, namespace: str, service_account: str, ports: set[int]
) -> None:
    credentials = mesh.credentials(namespace, service_account)
    pod = mesh.pods["application"]
    assert {port for port in PORTS if is_answered(mesh.address, pod[port], mesh.authority, credentials)} == ports


def test_nobody_without_a_certificate_of_the_mesh_reaches_anything(mesh: RunningMesh, tmp_path: Path) -> None:
    own = Authority(tmp_path, "somebody")
    forged = own.issue_for_uri("gateway", GATEWAY.uri)
    for pod, port in [("application", port) for port in PORTS] + [("redis", REDIS_PORT)]:
        place = mesh.address, mesh.pods[pod][port]
        assert not is_answered(*place, mesh.authority, None), port
        assert not is_answered(*place, mesh.authority, forged), port
        assert not is_answered(*place, None, None), port
    member = mesh.credentials("circles", "circles")
    assert is_answered(mesh.address, mesh.pods["redis"][REDIS_PORT], mesh.authority, member)


def is_answered(host: str, port: int, authority: Authority | None, credentials: Credentials | None) -> bool:
    """Whether anything comes back from there; by plain text without an authority."""
    with contextlib.ExitStack() as opened:
        connection = opened.enter_context(socket.create_connection((host, port), timeout=30))
        try:
            if authority is not None:
                context = ssl.create_default_context(cafile=str(authority.certificate))
                context.check_hostname = False
                if credentials is not None:
                    context.load_cert_chain(credentials.certificate, credentials.key)
                connection = opened.enter_context(context.wrap_socket(connection))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")
            return connection.recv(1) != b""
        except (ssl.SSLError, ConnectionError):
            return False
