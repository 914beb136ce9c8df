"""What the objects of the gateway and the mesh say agrees with the application, and with each other."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from circles.settings import Settings
from deployments.api import create_api
from deployments.inference.requests import MAX_INSTANCES
from deployments.inference.served_model import AT_ONCE
from deployments.inference.v2_grpc import SERVICE_NAME
from deployments.routes.images import _BATCH_AT_ONCE
from deployments.services import open_services
from deployments.uploads import _FIELD_OVERHEAD_BYTES, MAX_BATCH_FILES
from serve_app.processes import ROOT
from tests.fakes import FixedDetector, GatedDetector
from tests.kuberay.certificates import Credentials
from tests.kuberay.fields import NotUnderstoodError
from tests.kuberay.gateway import gateway_resources
from tests.kuberay.manifests import OVERLAYS, Manifest, find
from tests.kuberay.mesh import PORTS, ingress_pods, overlay, overlay_with
from tests.kuberay.policies import network_filters
from tests.kuberay.resources import Mesh, all_of, seconds
from tests.running import settings_in

HEALTH_PATHS = ["/health", "/ready"]
SLOWEST_READER_BYTES_PER_S = 100_000


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    """Those of every overlay."""
    return overlay(request.param)


def settings_of(objects: list[Manifest]) -> Settings:
    """What the application is told there; addresses that are in secrets stand for themselves."""
    (settings,) = [each for each in all_of(objects, "ConfigMap") if each["metadata"]["name"].startswith("circles-set")]
    given = {name.lower(): value for name, value in settings["data"].items()}
    return Settings(**{"database_url": "postgresql+psycopg://in-a-secret/circles", **given})


def test_host_is_the_same_wherever_it_is_named(objects: list[Manifest]) -> None:
    gateway = find(objects, "Gateway", "circles")
    certificate = find(objects, "Certificate", "circles-tls")
    (host,) = find(objects, "VirtualService", "circles")["spec"]["hosts"]
    http, https = gateway["spec"]["servers"]
    assert [http["hosts"], https["hosts"], certificate["spec"]["dnsNames"]] == [[host]] * 3
    assert https["tls"]["credentialName"] == certificate["spec"]["secretName"]
    assert certificate["metadata"]["namespace"] == "istio-system"  # where the gateway runs, and looks


def test_hosts_of_environments_differ() -> None:
    hosts = [find(overlay(name), "VirtualService", "circles")["spec"]["hosts"][0] for name in OVERLAYS]
    assert len(set(hosts)) == len(OVERLAYS)


def test_body_limits_are_those_of_the_application(objects: list[Manifest]) -> None:
    settings = settings_of(objects)
    code = yaml.safe_dump(find(objects, "EnvoyFilter", "circles-body-limit"), width=10_000)
    (numbers,) = re.findall(r"local single, inference = (\d+), (\d+)", code)
    (files,) = re.findall(r"return (\d+) \* single", code)
    assert [int(number) for number in numbers] == [
        settings.max_upload_bytes + _FIELD_OVERHEAD_BYTES,
        settings.max_inference_bytes,
    ]
    assert int(files) == MAX_BATCH_FILES


def test_serve_takes_bodies_as_large_as_the_gateway_lets_through() -> None:
    lines = shlex.split((ROOT / "serve.env").read_text(encoding="utf-8"), comments=True)
    variables = dict(line.split("=", 1) for line in lines)
    assert int(variables["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"]) == Settings().max_inference_bytes
    assert int(variables["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > Settings().max_upload_bytes


def longest_s(settings: Settings) -> dict[str, float]:
    """What the application may take by its own settings, by the routes of the VirtualService."""
    # It stores while it detects.
    upload_s = max(settings.detection_timeout_s, settings.storage_timeout_s) + settings.database_timeout_s
    inference_s = MAX_INSTANCES / AT_ONCE * settings.detection_timeout_s
    return {
        "circles-batch": MAX_BATCH_FILES / _BATCH_AT_ONCE * upload_s,
        "circles-write": max(upload_s, inference_s),
        "circles-grpc": inference_s,
        "circles-read": settings.max_upload_bytes / SLOWEST_READER_BYTES_PER_S,
    }


def test_timeouts_lie_above_those_of_the_application(objects: list[Manifest]) -> None:
    routes = find(objects, "VirtualService", "circles")["spec"]["http"]
    given = {route["name"]: seconds(route["timeout"]) for route in routes if "timeout" in route}
    needed = longest_s(settings_of(objects))
    assert given.keys() == needed.keys()
    assert {name: timeout_s for name, timeout_s in given.items() if timeout_s <= needed[name]} == {}


def test_only_reads_are_tried_again_when_they_may_have_been_done(objects: list[Manifest]) -> None:
    for route in find(objects, "VirtualService", "circles")["spec"]["http"]:
        if "route" not in route:
            continue
        reasons = set(route["retries"]["retryOn"].split(","))
        only_reads = all(match.get("method") == {"regex": "GET|HEAD"} for match in route["match"])
        assert only_reads == (route["name"] == "circles-read")
        assert reasons - {"connect-failure", "refused-stream"} == ({"reset"} if only_reads else set())


def test_lid_on_requests_lies_above_what_the_application_admits(objects: list[Manifest]) -> None:
    settings = settings_of(objects)
    patches = find(objects, "EnvoyFilter", "circles-rate-limit")["spec"]["configPatches"]
    limited = {}
    for patch in patches:
        if patch["applyTo"] == "HTTP_ROUTE":
            name = patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
            limits = patch["patch"]["value"]["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"]
            limited[name] = limits["token_bucket"]["max_tokens"]
    assert limited.keys() == {"circles-write", "circles-batch", "circles-grpc"}
    assert min(limited.values()) > settings.max_in_flight * settings.ingress_replicas


def test_ports_are_the_same_wherever_they_are_named(objects: list[Manifest]) -> None:
    service = find(objects, "RayService", "circles")["spec"]
    serve = yaml.safe_load(service["serveConfigV2"])
    ports = {serve["http_options"]["port"], serve["grpc_options"]["port"]}
    routes = find(objects, "VirtualService", "circles")["spec"]["http"]
    assert {to["destination"]["port"]["number"] for route in routes for to in route.get("route", [])} == ports
    assert {port["targetPort"] for port in service["serveService"]["spec"]["ports"]} == ports
    assert {port["port"] for port in service["serveService"]["spec"]["ports"]} == ports
    (allowed,) = find(objects, "NetworkPolicy", "gateway")["spec"]["ingress"]
    assert {port["port"] for port in allowed["ports"]} == ports
    rules = find(objects, "AuthorizationPolicy", "circles")["spec"]["rules"]
    (gateway,) = [rule for rule in rules if "ingressgateway" in str(rule["from"])]
    assert gateway["to"] == [{"operation": {"ports": [str(port) for port in sorted(ports)]}}]


def test_everything_is_in_the_mesh_and_nothing_comes_in_without_it(objects: list[Manifest]) -> None:
    for namespace in all_of(objects, "Namespace"):
        assert namespace["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient"
    strict = find(objects, "PeerAuthentication", "default")
    assert (strict["metadata"]["namespace"], strict["spec"]) == ("circles", {"mtls": {"mode": "STRICT"}})
    groups = find(objects, "RayService", "circles")["spec"]["rayClusterConfig"]
    selected = find(objects, "AuthorizationPolicy", "circles")["spec"]["selector"]["matchLabels"]
    for group in [groups["headGroupSpec"], *groups["workerGroupSpecs"]]:
        assert selected.items() <= group["template"]["metadata"]["labels"].items()


def test_probes_of_the_contract_pass_without_a_token(tmp_path: Path) -> None:
    objects = overlay_with("local", "jwt", tmp_path / "jwt")
    policy = find(objects, "AuthorizationPolicy", "circles-jwt")["spec"]
    (rule,) = policy["rules"]
    paths = [path + end for path in HEALTH_PATHS for end in ("", "/")]
    assert rule["to"] == [{"operation": {"notPaths": paths, "notPorts": ["8081"]}}]
    (accepted,) = find(objects, "RequestAuthentication", "circles-jwt")["spec"]["jwtRules"]
    assert rule["from"] == [{"source": {"notRequestPrincipals": [f"{accepted['issuer']}/*"]}}]


# Component `gateway-api`.


def application_paths(folder: Path) -> list[str]:
    """Every path of the contract, both forms, with and without a slash at the end."""
    services = open_services(settings_in(folder), GatedDetector(FixedDetector()), holder="a test")
    paths = [*create_api(services, is_behind_serve=False).openapi()["paths"], "/docs", "/static/docs/swagger-ui.css"]
    services.database.close()
    for lock in services.locks:
        lock.release()
    bare = {path.rstrip("/") for form in paths for path in (form, form.removeprefix("/api/v1"))}
    return ["/", "/openapi.json", *bare, *(f"{path}/" for path in bare)]


def rule_for(rules: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    """The rule of an HTTPRoute that takes this path."""
    for rule in rules:
        for match in rule["matches"]:
            value = match["path"]["value"]
            is_below = match["path"]["type"] == "PathPrefix" and path.startswith(f"{value}/")
            if path == value or is_below:
                return rule
    return None


def test_gateway_api_has_the_same_routes(tmp_path: Path) -> None:
    objects = overlay_with("local", "gateway-api", tmp_path / "gateway-api")
    rules = find(objects, "HTTPRoute", "circles")["spec"]["rules"]
    assert [path for path in application_paths(tmp_path) if rule_for(rules, path) is None] == []
    for path in (
        "/-/routes",
        "/-/healthz",
        "/api/serve/applications/",
        "/api/jobs/",
        "/metrics",
        "/healthz",
        "/imagesx",
    ):
        assert rule_for(rules, path) is None, path
    needed = longest_s(settings_of(objects))
    for path, route in (
        ("/images/batch", "circles-batch"),
        ("/images/", "circles-write"),
        ("/v1/models/circle-detector:predict", "circles-write"),
        ("/images/x/content", "circles-read"),
    ):
        rule = rule_for(rules, path)
        assert rule is not None
        assert seconds(rule["timeouts"]["request"]) > needed[route], path
        assert rule["backendRefs"] == [{"name": "circles-serve-svc", "port": 8000}]
    grpc_route = find(objects, "GRPCRoute", "circles")["spec"]["rules"]
    assert grpc_route == [
        {
            "matches": [{"method": {"service": SERVICE_NAME}}],
            "backendRefs": [{"name": "circles-serve-svc", "port": 9000}],
        }
    ]
    (redirect,) = find(objects, "HTTPRoute", "circles-redirect")["spec"]["rules"]
    assert redirect["filters"] == [
        {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301}}
    ]


# The translation itself.


def translate(objects: list[Manifest]) -> None:
    """All that the tests of the gateway translate."""
    credentials = Credentials(Path("certificate"), Path("key"))
    ports = {port: port for port in PORTS}
    upstreams = {port: [port] for port in PORTS}
    mesh, secrets = Mesh("127.0.0.1", Path("authority"), credentials), {"circles-tls": credentials}
    gateway_resources(objects, "gateway", {80: 80, 443: 443}, upstreams, mesh, secrets, {})
    network_filters(objects, ingress_pods(objects), ports)


def spec(objects: list[Manifest], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(all_of(objects, kind))["spec"]
    return found


def add_telemetry(objects: list[Manifest]) -> None:
    objects.append({"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry", "metadata": {"name": "x"}, "spec": {}})


CHANGES: dict[str, Callable[[list[Manifest]], object]] = {
    "a rewrite": lambda objects: spec(objects, "VirtualService")["http"][1].update(rewrite={"uri": "/"}),
    "headers": lambda objects: spec(objects, "VirtualService")["http"][1]["match"][0].update(headers={}),
    "routes for all paths": lambda objects: spec(objects, "VirtualService")["http"][1].pop("match"),
    "Istio's own retries": lambda objects: spec(objects, "VirtualService")["http"][1].pop("retries"),
    "no timeout": lambda objects: spec(objects, "VirtualService")["http"][1].pop("timeout"),
    "another Service": lambda objects: spec(objects, "DestinationRule").update(host="other"),
    "subsets": lambda objects: spec(objects, "DestinationRule").update(subsets=[]),
    "mutual TLS at the gateway": lambda objects: spec(objects, "Gateway")["servers"][1]["tls"].update(mode="MUTUAL"),
    "ciphers": lambda objects: spec(objects, "Gateway")["servers"][1]["tls"].update(cipherSuites=[]),
    "a condition": lambda objects: spec(objects, "AuthorizationPolicy")["rules"][0].update(when=[]),
    "addresses": lambda objects: spec(objects, "AuthorizationPolicy")["rules"][0]["from"][0]["source"].update(
        ipBlocks=["10.0.0.0/8"]
    ),
    "an unknown port": lambda objects: spec(objects, "AuthorizationPolicy")["rules"][1]["to"][0]["operation"].update(
        ports=["22"]
    ),
    "audited only": lambda objects: spec(objects, "AuthorizationPolicy").update(action="AUDIT"),
    "a cluster's patch": lambda objects: spec(objects, "EnvoyFilter")["configPatches"][0].update(applyTo="CLUSTER"),
    "a patch of a route that is not there": lambda objects: spec(objects, "EnvoyFilter")["configPatches"][1]["match"][
        "routeConfiguration"
    ]["vhost"]["route"].update(name="circles-other"),
    "another kind of object": add_telemetry,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_would_go_untested_is_refused(change: Callable[[list[Manifest]], object]) -> None:
    objects = overlay("prod")
    translate(objects)
    change(objects)
    with pytest.raises(NotUnderstoodError):
        translate(objects)
