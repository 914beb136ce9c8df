"""Istio's ingress gateway as an Envoy: what the control plane would tell it, as far as our objects say it.

A field that is not understood is an error. Mesh settings are Istio's defaults: paths are normalised ("." and "..", also
as %2e, and backslashes), but neither are slashes merged nor encoded ones decoded; the gateway is the edge, so what
clients say about themselves is not trusted.
"""

from collections.abc import Mapping, Sequence

from tests.kuberay.certificates import Credentials
from tests.kuberay.envoyfilters import CONNECTION_MANAGER, ROUTER, Patches
from tests.kuberay.fields import Fields, NotUnderstoodError, read_spec
from tests.kuberay.manifests import Manifest
from tests.kuberay.policies import GATEWAY, http_filters
from tests.kuberay.resources import (
    EXTENSIONS,
    Config,
    Mesh,
    Resources,
    certificate,
    check_kinds,
    listener,
    only,
    tls_socket,
)
from tests.kuberay.routes import Clusters, routes_by_host

_VERSIONS = {"TLSV1_0": "TLSv1_0", "TLSV1_1": "TLSv1_1", "TLSV1_2": "TLSv1_2", "TLSV1_3": "TLSv1_3"}


def gateway_resources(
    objects: Sequence[Manifest],
    name: str,
    ports: Mapping[int, int],
    upstreams: Mapping[int, Sequence[int]],
    mesh: Mesh,
    secrets: Mapping[str, Credentials],
    keys: Mapping[str, str],
) -> Resources:
    """The ingress gateway of these objects.

    Args:
        name: Of this gateway among several in one Envoy.
        ports: Where at the mesh's address the gateway's ports are.
        upstreams: Ports there that pods take connections at, by their ports in the manifests.
        secrets: Certificates of servers by the name of their secret.
        keys: JSON web key sets by their address.
    """
    check_kinds(objects)
    clusters = Clusters(objects, name, upstreams, mesh)
    patches = Patches(objects)
    routes = {
        host: [patches.route(route) for route in found] for host, found in routes_by_host(objects, clusters).items()
    }
    router = {"name": ROUTER, "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}}
    filters = [*http_filters(objects, GATEWAY, keys), *patches.filters, router]
    listeners = []
    with read_spec(only(objects, "Gateway")) as spec:
        if spec.take("selector") != GATEWAY.labels:
            raise NotUnderstoodError(f"{spec.path}.selector: not the ingress gateway")
        for server in spec.parts("servers"):
            port = server.part("port")
            port.take("name")
            number = port.take("number")
            own = f"{name}.{number}"
            is_https = port.take_one_of("protocol", "HTTP", "HTTPS") == "HTTPS"
            hosts = server.take("hosts")
            settings = server.part("tls")
            needs_tls = settings.take_one_of("httpsRedirect", True, False, default=False)
            virtual_hosts = [
                {
                    "name": host,
                    "domains": [host],
                    "routes": routes.get(host, []),
                    "require_tls": "ALL" if needs_tls else "NONE",
                }
                for host in hosts
            ]
            chain: Config = {"filters": [_manager(own, patches, filters, virtual_hosts)]}
            if is_https:
                chain["transport_socket"] = _termination(settings, secrets)
                chain["filter_chain_match"] = {"server_names": hosts}
            listeners.append(listener(own, mesh.address, ports[number], [chain], inspects_tls=is_https))
    return Resources(listeners, clusters.used)


def _manager(name: str, patches: Patches, filters: list[Config], virtual_hosts: list[Config]) -> Config:
    manager = {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "normalize_path": True,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "use_remote_address": True,
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"subject": True, "cert": True, "dns": True, "uri": True},
        "stream_idle_timeout": "0s",
        "server_name": "istio-envoy",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": filters,
        "route_config": {"virtual_hosts": virtual_hosts, "ignore_port_in_host_matching": True},
    }
    return {"name": CONNECTION_MANAGER, "typed_config": patches.manager(manager)}


def _termination(settings: Fields, secrets: Mapping[str, Credentials]) -> Config:
    settings.take_one_of("mode", "SIMPLE")
    context = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": _VERSIONS[settings.take("minProtocolVersion")]},
        "tls_certificates": [certificate(secrets[settings.take("credentialName")])],
    }
    return tls_socket("DownstreamTlsContext", {"common_tls_context": context})
