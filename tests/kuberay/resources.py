"""Parts of an Envoy's configuration, and looking at the objects that it is made of."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kuberay.certificates import Credentials
from tests.kuberay.fields import NotUnderstoodError
from tests.kuberay.manifests import Manifest

Config = dict[str, Any]

EXTENSIONS = "type.googleapis.com/envoy.extensions"
_TRANSLATED_KINDS = {
    *("Gateway", "VirtualService", "DestinationRule", "EnvoyFilter"),
    *("PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"),
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Resources:
    """Of an Envoy."""

    listeners: list[Config] = field(default_factory=list)
    clusters: list[Config] = field(default_factory=list)

    def add(self, more: "Resources") -> None:
        """Puts them in here too."""
        self.listeners.extend(more.listeners)
        self.clusters.extend(more.clusters)


@dataclass(frozen=True)
class Mesh:
    """What a member of the mesh has from it."""

    address: str
    """Of this machine; the ports of gateways and pods are there."""
    authority: Path
    credentials: Credentials


def listener(name: str, host: str, port: int, chains: list[Config], *, inspects_tls: bool) -> Config:
    inspector = {"@type": f"{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector"}
    return {
        "name": name,
        "address": address(host, port),
        "enable_reuse_port": False,  # a port that somebody else has is an error
        "filter_chains": chains,
        "listener_filters": [{"name": "tls_inspector", "typed_config": inspector}] if inspects_tls else [],
    }


def tls_socket(kind: str, context: Config) -> Config:
    typed_config = {"@type": f"{EXTENSIONS}.transport_sockets.tls.v3.{kind}", **context}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed_config}


def certificate(credentials: Credentials) -> Config:
    return {
        "certificate_chain": {"filename": str(credentials.certificate)},
        "private_key": {"filename": str(credentials.key)},
    }


def endpoints(name: str, host: str, ports: Sequence[int]) -> Config:
    found = [{"endpoint": {"address": address(host, port)}} for port in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": found}]}


def address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def merged(value: Any, patch: Any) -> Any:
    """As messages of protobuf are merged: mappings field by field, lists one after the other."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return value | {key: merged(value[key], part) if key in value else part for key, part in patch.items()}
    if isinstance(value, list) and isinstance(patch, list):
        return [*value, *patch]
    return patch


def seconds(duration: str) -> float:
    """A duration in Istio's notation."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    if match is None:
        raise NotUnderstoodError(f"{duration}: no duration")
    return float(match[1]) * _SECONDS[match[2]]


def check_kinds(objects: Sequence[Manifest]) -> None:
    for each in objects:
        group = each["apiVersion"].partition("/")[0]
        if group.endswith("istio.io") and each["kind"] not in _TRANSLATED_KINDS:
            raise NotUnderstoodError(f"{each['kind']}/{each['metadata']['name']}: not translated")


def all_of(objects: Sequence[Manifest], kind: str) -> Iterator[Manifest]:
    return (each for each in objects if each["kind"] == kind)


def only(objects: Sequence[Manifest], kind: str) -> Manifest:
    (found,) = all_of(objects, kind)
    return found
