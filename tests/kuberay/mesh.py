"""Gateways and pods of the overlays on this machine: one Envoy, before the application and servers that misbehave."""

import contextlib
import copy
import http.client
import itertools
import os
import random
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import yaml

from serve_app.processes import free_port
from tests.kuberay.certificates import Authority, Credentials
from tests.kuberay.envoy import Envoy, running_envoy
from tests.kuberay.gateway import gateway_resources
from tests.kuberay.manifests import KUBERAY, OVERLAYS, Manifest, find, rendered
from tests.kuberay.policies import GATEWAY, Workload
from tests.kuberay.resources import Mesh, Resources, all_of
from tests.kuberay.upstreams import Application, ScriptedServer, running_application
from tests.kuberay.ztunnel import pod_resources

PORTS = (8000, 9000, 8265, 8080, 9101)
"""Of the application's pods, those that somebody is allowed to reach."""
REDIS_PORT = 6379


def overlay(name: str) -> list[Manifest]:
    """The objects of an overlay, to be changed at will."""
    return copy.deepcopy(list(rendered(KUBERAY / "overlays" / name)))


def overlay_with(name: str, component: str, folder: Path) -> list[Manifest]:
    """Those of an overlay that has one more component; the folder is for its kustomization."""
    kustomization = {
        "resources": [os.path.relpath(KUBERAY / "overlays" / name, folder.resolve())],
        "components": [os.path.relpath(KUBERAY / "components" / component, folder.resolve())],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return copy.deepcopy(list(rendered(folder)))


def host_of(objects: Sequence[Manifest]) -> str:
    """The environment's host."""
    host: str = find(objects, "VirtualService", "circles")["spec"]["hosts"][0]
    return host


@dataclass(frozen=True)
class Answer:
    """What came back for a request that was written by hand."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Door:
    """A gateway as clients see it."""

    host: str
    address: str
    http_port: int
    https_port: int
    authority: Authority

    @contextlib.contextmanager
    def client(self) -> Iterator[httpx2.Client]:
        """One that speaks TLS, and knows the host by its name though it is at the loopback address."""

        def name_host(request: httpx2.Request) -> None:
            request.extensions["sni_hostname"] = self.host

        with httpx2.Client(
            base_url=f"https://{self.address}:{self.https_port}",
            verify=self.authority.trusting_context,
            headers={"Host": self.host},
            timeout=30,
            event_hooks={"request": [name_host]},
        ) as client:
            yield client

    @contextlib.contextmanager
    def connected(self, *, server_name: str | None = None) -> Iterator[ssl.SSLSocket]:
        """A connection by TLS."""
        with (
            socket.create_connection((self.address, self.https_port), timeout=30) as plain,
            self.authority.trusting_context.wrap_socket(plain, server_hostname=server_name or self.host) as secured,
        ):
            yield secured

    def ask(self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """What is answered to a request that only has a head, its target being sent as it is."""
        lines = {"Host": self.host, **(headers or {})}
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with self.connected() as connection:
            connection.sendall(head.encode() + b"\r\n")
            return read_answer(connection)

    def ask_plainly(self, target: str, host: str | None = None) -> Answer:
        """The same without TLS."""
        with socket.create_connection((self.address, self.http_port), timeout=30) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host or self.host}\r\n\r\n".encode())
            return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    """The next answer on this connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@dataclass(frozen=True)
class RunningMesh:
    """Everything, running."""

    address: str
    doors: Mapping[str, Door]
    pods: Mapping[str, Mapping[int, int]]
    """Where at that address each pod's ports take connections."""
    authority: Authority
    envoy: Envoy
    application: Application
    flaky: ScriptedServer
    late_port: int
    """Where the program of pod ``late`` would listen."""

    def credentials(self, namespace: str, service_account: str) -> Credentials:
        """What the mesh gives to pods of this service account."""
        return _credentials(self.authority, Workload(namespace, service_account, {}))


def ingress_pods(objects: Sequence[Manifest]) -> Workload:
    """The pods of the ingress group, as policies select them."""
    groups = find(objects, "RayService", "circles")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (template,) = [group["template"] for group in groups if group["groupName"] == "ingress"]
    labels, account = template["metadata"]["labels"], template["spec"]["serviceAccountName"]
    return Workload("circles", account, labels)


@contextlib.contextmanager
def running_mesh(folder: Path, jwks: str, scaled: Callable[[list[Manifest]], None]) -> Iterator[RunningMesh]:
    """
    Args:
        jwks: The JSON web key set of whoever issues tokens.
        scaled: Makes timeouts and buckets of some objects small enough for a test.
    """
    authority, public = Authority(folder, "mesh"), Authority(folder, "public")
    local, small = overlay("local"), overlay("local")
    scaled(small)
    late_port = free_port()
    resources = Resources()
    # Nobody else listens or has connections at an address of our own, so that its ports are free, all of them.
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    ports = itertools.count(20_000)
    with (
        running_application(folder) as application,
        ScriptedServer("answer").running() as other,
        ScriptedServer("hang").running() as hanging,
        ScriptedServer("answer").running() as flaky,
    ):
        pods: dict[str, dict[int, int]] = {}

        def add_pod(name: str, objects: Sequence[Manifest], workload: Workload, programs: Mapping[int, int]) -> None:
            pods[name] = {port: next(ports) for port in programs}
            member = Mesh(address, authority.certificate, _credentials(authority, workload))
            resources.add(pod_resources(objects, name, workload, pods[name], programs, member))

        for name, http_port, grpc_port in (
            ("application", application.port, application.grpc_port),
            ("hanging", hanging.port, hanging.port),
            ("flaky", flaky.port, flaky.port),
            ("dead", free_port(), free_port()),
            ("late", late_port, late_port),
        ):
            programs = dict.fromkeys(PORTS, other.port) | {8000: http_port, 9000: grpc_port}
            add_pod(name, local, ingress_pods(local), programs)
        prod = overlay("prod")
        redis = find(prod, "StatefulSet", "circles-redis")["spec"]["template"]
        redis_pods = Workload("circles", redis["spec"]["serviceAccountName"], redis["metadata"]["labels"])
        add_pod("redis", prod, redis_pods, {REDIS_PORT: other.port})
        # Nobody takes connections there: a pod that is gone.
        pods["gone"] = {port: next(ports) for port in PORTS}

        doors: dict[str, Door] = {}
        member = Mesh(address, authority.certificate, _credentials(authority, GATEWAY))

        def add_gateway(name: str, objects: Sequence[Manifest], *behind: str) -> None:
            certificate = find(objects, "Certificate", "circles-tls")["spec"]
            secrets = {certificate["secretName"]: public.issue_for_hosts(name, certificate["dnsNames"])}
            door = Door(host_of(objects), address, next(ports), next(ports), public)
            upstreams = {port: [pods[pod][port] for pod in behind] for port in PORTS}
            own_ports = {80: door.http_port, 443: door.https_port}
            rules = [rule for each in all_of(objects, "RequestAuthentication") for rule in each["spec"]["jwtRules"]]
            keys = {rule["jwksUri"]: jwks for rule in rules}
            resources.add(gateway_resources(objects, name, own_ports, upstreams, member, secrets, keys))
            doors[name] = door

        for name in OVERLAYS:
            add_gateway(name, overlay(name), "application")
        add_gateway("jwt", overlay_with("local", "jwt", folder / "jwt"), "application")
        add_gateway("small", small, "application")
        add_gateway("hanging", small, "hanging")
        add_gateway("flaky", local, "flaky")
        add_gateway("half-gone", local, "gone", "application")
        add_gateway("half-dead", local, "dead", "application")
        add_gateway("late", local, "late")
        with running_envoy(folder, address, next(ports), resources.listeners, resources.clusters) as envoy:
            yield RunningMesh(address, doors, pods, authority, envoy, application, flaky, late_port)


def _credentials(authority: Authority, workload: Workload) -> Credentials:
    name = f"{workload.namespace}-{workload.service_account}"
    return authority.issue_for_uri(name, workload.uri)
