"""Where requests go: a VirtualService as routes of an Envoy, the Service and its DestinationRule as clusters."""

from collections.abc import Mapping, Sequence

from tests.kuberay.fields import Fields, NotUnderstoodError, read_spec
from tests.kuberay.manifests import Manifest
from tests.kuberay.resources import EXTENSIONS, Config, Mesh, certificate, endpoints, only, seconds, tls_socket


def routes_by_host(objects: Sequence[Manifest], clusters: "Clusters") -> dict[str, list[Config]]:
    """One route of Envoy for each ``match``."""
    routes: list[Config] = []
    gateway = only(objects, "Gateway")["metadata"]
    service = only(objects, "VirtualService")
    with read_spec(service) as spec:
        if spec.take("gateways") != [gateway["name"]] or service["metadata"]["namespace"] != gateway["namespace"]:
            raise NotUnderstoodError(f"{spec.path}.gateways: not the one gateway")
        hosts = spec.take("hosts")
        for http in spec.parts("http"):
            name = http.take("name")
            if "directResponse" in http:
                action = {"direct_response": {"status": http.part("directResponse").take("status")}}
            else:
                action = {"route": _action(http, clusters)}
            matches = http.parts("match")
            if not matches:
                raise NotUnderstoodError(f"{http.path}.match: absent, so for every path")
            routes.extend({"name": name, "match": _match(match), **action} for match in matches)
    return dict.fromkeys(hosts, routes)


def _action(http: Fields, clusters: "Clusters") -> Config:
    (route,) = http.parts("route")
    timeout = f"{seconds(http.take('timeout')):g}s"
    action: Config = {
        "cluster": clusters.to(route.part("destination")),
        "timeout": timeout,
        "max_grpc_timeout": timeout,
    }
    if "retries" not in http:
        raise NotUnderstoodError(f"{http.path}.retries: absent, so Istio's own, which repeat what may have been done")
    retries = http.part("retries")
    attempts = retries.take("attempts")
    if attempts:
        previous_hosts = f"{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        action["retry_policy"] = {
            "num_retries": attempts,
            "retry_on": retries.take("retryOn"),
            "retry_host_predicate": [
                {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": previous_hosts}}
            ],
            "host_selection_retry_max_attempts": 5,
        }
    return action


def _match(match: Fields) -> Config:
    translated: Config = {}
    uri = match.part("uri")
    kind = next((name for name in ("exact", "prefix", "regex") if name in uri), "exact")
    value = uri.take(kind)
    translated |= {"safe_regex": {"regex": value}} if kind == "regex" else {"path" if kind == "exact" else kind: value}
    if "method" in match:
        method = match.part("method")
        string = (
            {"safe_regex": {"regex": method.take("regex")}} if "regex" in method else {"exact": method.take("exact")}
        )
        translated["headers"] = [{"name": ":method", "string_match": string}]
    return translated


class Clusters:
    """The Services that routes lead to."""

    def __init__(
        self, objects: Sequence[Manifest], name: str, upstreams: Mapping[int, Sequence[int]], mesh: Mesh
    ) -> None:
        self._name = name
        self._upstreams = upstreams
        self._mesh = mesh
        service = only(objects, "RayService")["spec"]["serveService"]
        namespace = only(objects, "RayService")["metadata"]["namespace"]
        self._host = f"{service['metadata']['name']}.{namespace}.svc.cluster.local"
        self._ports = service["spec"]["ports"]
        with read_spec(only(objects, "DestinationRule")) as spec:
            if spec.take("host") != self._host:
                raise NotUnderstoodError(f"{spec.path}.host: routes lead to {self._host}")
            self._policy = _traffic_policy(spec.part("trafficPolicy"))
        self.used: list[Config] = []

    def to(self, destination: Fields) -> str:
        """The name of the cluster for a route's destination."""
        if destination.take("host") != self._host:
            raise NotUnderstoodError(f"{destination.path}.host: the application's is {self._host}")
        number = destination.part("port").take("number")
        (port,) = [each for each in self._ports if each["port"] == number]
        own = f"{self._name}.outbound.{number}"
        if own not in [each["name"] for each in self.used]:
            protocol = {"http": "http_protocol_options", "kubernetes.io/h2c": "http2_protocol_options"}
            options = {
                "@type": f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {protocol[port["appProtocol"]]: {}},
            }
            context = {
                "common_tls_context": {
                    "tls_certificates": [certificate(self._mesh.credentials)],
                    "validation_context": {"trusted_ca": {"filename": str(self._mesh.authority)}},
                }
            }
            self.used.append(
                {
                    "name": own,
                    **self._policy,
                    "load_assignment": endpoints(own, self._mesh.address, self._upstreams[port["targetPort"]]),
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
                    },
                    "transport_socket": tls_socket("UpstreamTlsContext", context),
                }
            )
        return own


def _traffic_policy(policy: Fields) -> Config:
    """Istio knows ejection after failures in a row alone, so ejection by success rates is switched off."""
    balancing = policy.part("loadBalancer").take_one_of("simple", "LEAST_REQUEST", "ROUND_ROBIN")
    connect_timeout = policy.part("connectionPool").part("tcp").take("connectTimeout")
    outlier = policy.part("outlierDetection")
    translated: Config = {
        "interval": outlier.take("interval"),
        "base_ejection_time": outlier.take("baseEjectionTime"),
        "max_ejection_percent": outlier.take("maxEjectionPercent"),
        "enforcing_success_rate": 0,
    }
    for istio, envoy in (
        ("consecutive5xxErrors", "consecutive_5xx"),
        ("consecutiveGatewayErrors", "consecutive_gateway_failure"),
    ):
        count = outlier.take(istio)
        translated[f"enforcing_{envoy}"] = 100 if count else 0
        if count:
            translated[envoy] = count
    return {
        "lb_policy": balancing,
        "connect_timeout": connect_timeout,
        "outlier_detection": translated,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
