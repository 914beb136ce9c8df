"""What stands before the pods of a mesh: who may connect to which port."""

from collections.abc import Mapping, Sequence

from tests.kuberay.manifests import Manifest
from tests.kuberay.policies import Workload, network_filters, takes_plain_text
from tests.kuberay.resources import (
    EXTENSIONS,
    Config,
    Mesh,
    Resources,
    certificate,
    check_kinds,
    endpoints,
    listener,
    tls_socket,
)


def pod_resources(
    objects: Sequence[Manifest],
    name: str,
    workload: Workload,
    ports: Mapping[int, int],
    applications: Mapping[int, int],
    mesh: Mesh,
) -> Resources:
    """What stands before a pod's ports, as ztunnel does in ambient mode: one listener for each.

    ztunnel itself has one port for all, 15008, and is told by HTTP CONNECT which one is meant; its judgement is the
    same, and so is what the gateway sees: a pod that is gone refuses connections, but one whose program is gone takes
    them first and ends them then.

    Args:
        ports: Where at the mesh's address connections to the pod's ports are taken.
        applications: Where the pod's programs listen, at 127.0.0.1.
    """
    check_kinds(objects)
    context = {
        "common_tls_context": {
            "tls_certificates": [certificate(mesh.credentials)],
            "validation_context": {"trusted_ca": {"filename": str(mesh.authority)}},
        },
        "require_client_certificate": True,
    }
    resources = Resources()
    for number, port in ports.items():
        own = f"{name}.{number}"
        proxy = {
            "@type": f"{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": own,
            "cluster": own,
            # Envoy judges at a client's first bytes; programs that speak first would not wait for that.
            "upstream_connect_mode": "ON_DOWNSTREAM_DATA",
            "max_early_data_bytes": 65536,
        }
        filters = [
            *network_filters(objects, workload, ports),
            {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy},
        ]
        chains: list[Config] = [
            {
                "filters": filters,
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": tls_socket("DownstreamTlsContext", context),
            }
        ]
        if takes_plain_text(objects, workload):
            chains.append({"filters": filters, "filter_chain_match": {"transport_protocol": "raw_buffer"}})
        resources.listeners.append(listener(own, mesh.address, port, chains, inspects_tls=True))
        resources.clusters.append(
            {
                "name": own,
                "connect_timeout": "2s",
                "load_assignment": endpoints(own, "127.0.0.1", [applications[number]]),
            }
        )
    return resources
