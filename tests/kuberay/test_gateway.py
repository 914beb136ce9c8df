"""What the gateway and the mesh promise, tried through a real Envoy that is configured from the rendered objects."""

import contextlib
import json
import posixpath
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from circles.settings import Settings
from deployments.inference import open_inference_pb2 as messages
from deployments.inference.v2_grpc import SERVICE_NAME
from deployments.inference.v2_rest import join_elements
from deployments.problems import PROBLEM_MEDIA_TYPE
from deployments.uploads import MAX_BATCH_FILES
from tests.kuberay.certificates import Authority, Credentials
from tests.kuberay.manifests import OVERLAYS, Manifest, find
from tests.kuberay.mesh import PORTS, REDIS_PORT, Answer, Door, RunningMesh, overlay_with, read_answer, running_mesh
from tests.kuberay.policies import GATEWAY
from tests.kuberay.resources import seconds
from tests.kuberay.upstreams import ScriptedServer
from tests.pictures import disc_jpeg, encode
from tests.running import wait_until

TIME_SCALE = 1 / 200
BUCKET = 5
MODEL = "circle-detector"
SIGNING_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SINGLE_BYTES = 25 * 2**20 + 64 * 1024


def scale(objects: list[Manifest]) -> None:
    """Shortens timeouts, and lets the buckets of the rate limit hold few requests for as long as the tests run."""
    for route in find(objects, "VirtualService", "circles")["spec"]["http"]:
        if "timeout" in route:
            route["timeout"] = f"{seconds(route['timeout']) * TIME_SCALE:g}s"
    for patch in find(objects, "EnvoyFilter", "circles-rate-limit")["spec"]["configPatches"]:
        if patch["applyTo"] == "HTTP_ROUTE":
            limit = patch["patch"]["value"]["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"]
            limit["token_bucket"] |= {"max_tokens": BUCKET, "fill_interval": "3600s"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """Gateways and pods, running."""
    key = jwt.algorithms.RSAAlgorithm.to_jwk(SIGNING_KEY.public_key(), as_dict=True)
    jwks = json.dumps({"keys": [{**key, "kid": "tests", "alg": "RS256"}]})
    with running_mesh(tmp_path_factory.mktemp("mesh"), jwks, scale) as mesh:
        yield mesh


@pytest.fixture
def door(mesh: RunningMesh) -> Door:
    """The gateway of overlay ``local``."""
    return mesh.doors["local"]


def is_by_gateway(answer: Answer) -> bool:
    """Every answer of the application says an id of the request."""
    return "x-request-id" not in answer.headers


# The way in.


@pytest.mark.parametrize("name", OVERLAYS)
def test_http_is_redirected_to_https(mesh: RunningMesh, name: str) -> None:
    door = mesh.doors[name]
    answer = door.ask_plainly("/images/?limit=3&status=done")
    assert answer.status == 301
    assert answer.headers["location"] == f"https://{door.host}/images/?limit=3&status=done"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_environment_answers_at_its_host(mesh: RunningMesh, name: str) -> None:
    with mesh.doors[name].client() as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")


def test_other_hosts_get_404_and_other_names_no_connection(mesh: RunningMesh, door: Door) -> None:
    for host in ("example.org", f"{door.host}.example.org", "127.0.0.1"):
        assert door.ask("/health", headers={"Host": host}).status == 404, host
        assert door.ask_plainly("/health", host).status == 404, host
    for host in (door.host.upper(), f"{door.host}:443"):
        assert door.ask("/health", headers={"Host": host}).status == 200, host
    with (
        pytest.raises((ssl.SSLError, ConnectionError)) as refused,
        door.connected(server_name=mesh.doors["prod"].host),
    ):
        pass
    assert not isinstance(refused.value, ssl.SSLCertVerificationError)  # it is not shown a certificate either


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1.*is deprecated:DeprecationWarning")
def test_tls_is_spoken_from_version_1_2_on(door: Door) -> None:
    assert negotiated(door, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert negotiated(door, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):  # it is the gateway that refuses
            negotiated(door, old)


def negotiated(door: Door, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=str(door.authority.certificate))
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((door.address, door.https_port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=door.host) as secured,
    ):
        return secured.version()


def test_request_id_of_the_client_is_kept(door: Door) -> None:
    assert door.ask("/health", headers={"X-Request-ID": "a-client.s:own"}).headers["x-request-id"] == "a-client.s:own"
    assert door.ask("/health", headers={"X-Request-ID": '"}'}).headers["x-request-id"] != '"}'
    assert len(door.ask("/health").headers["x-request-id"]) == 36


# Routes.


def test_every_route_of_the_contract_is_answered_by_the_application(mesh: RunningMesh, door: Door) -> None:
    bare = [("GET", path) for path in ("/", "/docs", "/openapi.json", "/static/docs/swagger-ui.css")]
    twins = [(method, path.removeprefix("/api/v1")) for method, path in mesh.application.operations]
    values = {"image_id": "0" * 64, "object_id": str(uuid.uuid4()), "model_name": MODEL}
    missed = []
    for method, template in {*mesh.application.operations, *twins, *bare}:
        path = template.format_map(values)
        for target in {path, path.rstrip("/") or "/", f"{path.rstrip('/')}/"}:
            probe = uuid.uuid4().hex
            answer = door.ask(f"{target}?{probe}", method, {"Content-Length": "0"})
            if is_by_gateway(answer) or [each.method for each in mesh.application.probed(probe)] != [method]:
                missed.append((method, target, answer.status))
    assert missed == []
    assert len(mesh.application.operations) > 20


def test_pictures_go_through_and_come_back(door: Door) -> None:
    picture, other = disc_jpeg(1), disc_jpeg(2)
    with door.client() as client:
        uploaded = client.post("/images/", files={"file": ("discs.jpg", picture)})
        assert uploaded.status_code == 201, uploaded.text
        path = uploaded.headers["Location"]
        assert client.post("/api/v1/images/", files={"file": ("discs.jpg", picture)}).status_code == 200
        batch = client.post("/images/batch", files=[("files", ("discs.jpg", other)), ("files", ("text.txt", b"text"))])
        assert [result["status"] for result in batch.json()["results"]] == [201, 415]
        assert client.get("/images/").json()["items"][0]["image_id"]
        assert client.get(path).json()["detection"]["count"] == 1
        (found,) = client.get(f"{path}/objects").json()["objects"]
        assert client.get(f"{path}/objects/{found['object_id']}").json()["score"] == 0.9
        assert client.get(f"{path}/content").content == picture
        assert client.get(f"{path}/annotated").headers["Content-Type"] == "image/jpeg"
        assert client.post(f"{path}/detection").status_code == 200
        predicted = client.post(f"/v1/models/{MODEL}:predict", content=picture, headers={"Content-Type": "image/jpeg"})
        assert len(predicted.json()["predictions"][0]) == 1
        for image_id in (uploaded.json()["image_id"], batch.json()["results"][0]["image"]["image_id"]):
            assert client.delete(f"/images/{image_id}").status_code == 204
        assert client.get(path).status_code == 404


def test_large_picture_goes_through_and_comes_back(door: Door) -> None:
    picture = encode(np.full((2800, 2800, 3), 90, np.uint8), "BMP")
    assert 0.9 * Settings().max_upload_bytes > len(picture) > 20 * 2**20
    with door.client() as client:
        uploaded = client.post("/images/", content=picture, headers={"Content-Type": "image/bmp"})
        assert uploaded.status_code == 201, uploaded.text
        assert client.get(f"{uploaded.headers['Location']}/content").content == picture
        assert client.delete(uploaded.headers["Location"]).status_code == 204


@pytest.mark.parametrize(
    "path",
    [
        *("/-/healthz", "/-/routes", "/api/serve/applications/", "/api/jobs/", "/api/version", "/api/healthz"),
        *("/metrics", "/api", "/api/v2/images/", "/imagesx", "/v1", "/v2x", "/healthz", "/readyz", "/configuration"),
        *("/static", "/docsx", "/nodes", "/ray.serve.RayServeAPIService/Healthz", "/inference.GRPCInferenceService"),
    ],
)
def test_nothing_else_is_there(mesh: RunningMesh, door: Door, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        probe = uuid.uuid4().hex
        answer = door.ask(f"{path}?{probe}", method, {"Content-Length": "0"})
        assert (answer.status, is_by_gateway(answer)) == (404, True), method
        assert mesh.application.probed(probe) == []


@pytest.mark.parametrize(
    "target",
    [
        *("/images/../-/routes", "/images/%2e%2e/-/routes", "/images/.%2E/-/routes", "/images/./../-/routes"),
        *("//-/routes", "/.//-/routes", "/images//../../-/routes", "/images/..//-/routes", "/%2d/routes", "/-//routes"),
        *("/v1/models/../../-/routes", "/v1/models/%2e%2e/%2e%2e/-/routes", "/api/v1/../serve/applications/"),
        *("/images/..%2f-/routes", "/images/%2e%2e%2F-/routes", "/images%2f..%2f-/routes", "/static/..%2f-/healthz"),
        *("/images/..\\-\\routes", "/images/..%5c-%5Croutes", "/images/%252e%252e/-/routes", "/images/..;/-/routes"),
        *("https://circles.localhost/-/routes", "https://circles.localhost/images/../-/routes"),
        *("/images/#/../-/routes", "/docs/../-/healthz", "/v2/../-/routes", "/api/v1/../../-/routes"),
    ],
)
def test_tricks_with_paths_lead_to_nothing_of_serve(mesh: RunningMesh, door: Door, target: str) -> None:
    probe = uuid.uuid4().hex
    assert door.ask(f"{target}?{probe}").status in {400, 404}
    for arrived in mesh.application.probed(probe):
        # As whoever comes next would read it at worst: the application's own, not Serve's or the dashboard's.
        resolved = posixpath.normpath(arrived.path.replace("\\", "/"))
        assert resolved.startswith(("/images", "/api/v1", "/v1/models", "/v2", "/docs", "/static")), arrived


# Bodies.


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/images/", SINGLE_BYTES),
        ("/api/v1/images", SINGLE_BYTES),
        ("/images/batch", MAX_BATCH_FILES * SINGLE_BYTES),
        ("/api/v1/images/batch/", MAX_BATCH_FILES * SINGLE_BYTES),
        (f"/v1/models/{MODEL}:predict", Settings().max_inference_bytes),
        (f"/v2/models/{MODEL}/infer", Settings().max_inference_bytes),
    ],
)
def test_announced_bodies_above_the_limit_are_refused_unread(
    mesh: RunningMesh, door: Door, path: str, limit: int
) -> None:
    probe = uuid.uuid4().hex
    headers = {"Content-Type": "multipart/form-data; boundary=x", "X-Request-ID": "mine"}
    refused = door.ask(f"{path}?{probe}", "POST", {**headers, "Content-Length": str(limit + 1)})
    document = json.loads(refused.body)
    detail = f"a body of more than {limit} bytes is not accepted"
    assert (refused.status, refused.headers["x-request-id"]) == (413, "mine")
    if path.startswith("/v"):  # these protocols have errors of their own form
        assert (document, refused.headers["content-type"]) == ({"error": detail}, "application/json")
    else:
        assert refused.headers["content-type"] == PROBLEM_MEDIA_TYPE
        assert document == {
            "type": "urn:circles:problem:file-too-large",
            "title": "File too large",
            "status": 413,
            "detail": detail,
            "instance": path,
            "request_id": "mine",
        }
    assert mesh.application.probed(probe) == []

    with door.connected() as connection:
        head = f"POST {path}?{probe} HTTP/1.1\r\nHost: {door.host}\r\nContent-Length: {limit}\r\n\r\n"
        connection.sendall(head.encode())
        wait_until(lambda: len(mesh.application.probed(probe)) == 1)


def test_gateway_and_application_refuse_in_the_same_words(door: Door) -> None:
    """What is announced meets the gateway, what is not the application."""
    limit = Settings().max_upload_bytes
    head = {"Content-Type": "image/jpeg", "X-Request-ID": "mine"}
    by_gateway = door.ask("/images/", "POST", {**head, "Content-Length": str(2 * SINGLE_BYTES)})
    with door.client() as client:
        chunks = (bytes(2**20) for _ in range(1 + limit // 2**20))
        by_application = client.post("/images/", content=chunks, headers=head)
    assert by_application.status_code == by_gateway.status == 413
    said = by_application.json()
    assert said.pop("detail") == f"a body of more than {limit} bytes is not accepted"
    known = json.loads(by_gateway.body)
    known.pop("detail")
    assert known == said


def test_floods_are_answered_429(mesh: RunningMesh) -> None:
    door = mesh.doors["small"]
    for path in ("/images/", "/images/batch", f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"):
        answers = [door.ask(path, "POST", {"Content-Length": "0"}) for _ in range(BUCKET + 2)]
        assert [answer.status == 429 for answer in answers] == [False] * BUCKET + [True] * 2, path
        assert answers[-1].headers["retry-after"] == "1"
    for path in ("/images/", "/health", f"/v2/models/{MODEL}"):
        assert {door.ask(path).status for _ in range(3 * BUCKET)} == {200}, path
    with called(door) as call:
        codes = [code_of(lambda: call("ServerLive", messages.ServerLiveRequest())) for _ in range(BUCKET + 1)]
    assert codes == [None] * BUCKET + [grpc.StatusCode.RESOURCE_EXHAUSTED]


# Time.


def test_application_that_hangs_is_given_up_at_the_timeout(mesh: RunningMesh) -> None:
    door = mesh.doors["hanging"]
    timeouts = {
        ("GET", "/images/"): 330,
        ("GET", "/health"): 330,
        ("POST", "/images/batch"): 330,
        ("POST", "/images/"): 100,
        ("POST", f"/v1/models/{MODEL}:predict"): 100,
    }

    def took(asked: tuple[str, str]) -> tuple[int, float]:
        started = time.monotonic()
        answer = door.ask(asked[1], asked[0], {"Content-Length": "0"})
        return answer.status, time.monotonic() - started

    with ThreadPoolExecutor(len(timeouts)) as pool:
        for asked, (status, took_s) in zip(timeouts, pool.map(took, timeouts), strict=True):
            expected_s = timeouts[asked] * TIME_SCALE
            assert status == 504, asked
            assert 0.9 * expected_s <= took_s < expected_s + 1, asked  # timers are some milliseconds coarse
    started = time.monotonic()
    with called(door) as call, pytest.raises(grpc.RpcError, match="upstream request timeout"):
        call("ServerLive", messages.ServerLiveRequest())
    assert time.monotonic() - started >= 0.9 * 100 * TIME_SCALE


def test_time_of_sending_a_body_does_not_count(mesh: RunningMesh) -> None:
    door = mesh.doors["hanging"]
    with door.connected() as connection:
        connection.sendall(f"POST /images/ HTTP/1.1\r\nHost: {door.host}\r\nContent-Length: 2\r\n\r\n1".encode())
        connection.settimeout(3 * 100 * TIME_SCALE)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(30)
        started = time.monotonic()
        connection.sendall(b"2")
        assert read_answer(connection).status == 504
        assert time.monotonic() - started >= 0.9 * 100 * TIME_SCALE


# Trying again.


def test_a_read_is_tried_again_after_a_reset(mesh: RunningMesh) -> None:
    door, server = mesh.doors["flaky"], mesh.flaky
    server.requests.clear()
    server.script.extend(["reset", "reset"])
    assert door.ask("/images/").status == 200
    assert len(server.requests) == 3
    server.script.extend(["reset", "reset", "reset"])
    assert door.ask("/images/").status == 503
    assert not server.script


@pytest.mark.parametrize(("method", "path"), [("POST", "/images/"), ("POST", "/images/batch"), ("DELETE", "/images/x")])
def test_what_may_have_been_done_is_not_tried_again(mesh: RunningMesh, method: str, path: str) -> None:
    server = mesh.flaky
    server.requests.clear()
    server.script.append("reset")
    assert mesh.doors["flaky"].ask(path, method, {"Content-Length": "0"}).status == 503
    assert server.requests == [f"{method} {path} HTTP/1.1"]


def test_what_the_application_says_itself_is_passed_on(mesh: RunningMesh) -> None:
    server = mesh.flaky
    server.requests.clear()
    server.script.append("unavailable")
    answer = mesh.doors["flaky"].ask("/images/")
    assert (answer.status, answer.headers["retry-after"], len(server.requests)) == (503, "5", 1)


def test_pod_that_is_gone_costs_no_request(mesh: RunningMesh) -> None:
    door = mesh.doors["half-gone"]
    for method, path in (("POST", f"/v1/models/{MODEL}:predict"), ("GET", "/health")):
        answers = [door.ask(path, method, {"Content-Length": "0"}) for _ in range(20)]
        assert not any(is_by_gateway(answer) for answer in answers)
    assert mesh.envoy.count("cluster.half-gone.outbound.8000.upstream_cx_connect_fail") >= 1


def test_pod_whose_program_is_gone_costs_no_read_and_is_soon_left_out(mesh: RunningMesh) -> None:
    """Its side of the tunnel has taken the connection, so nobody knows what became of anything else."""
    door = mesh.doors["half-dead"]
    assert {door.ask("/health").status for _ in range(20)} == {200}
    assert mesh.envoy.count("cluster.half-dead.outbound.8000.outlier_detection.ejections_enforced_total") >= 1
    answers = [door.ask("/images/", "POST", {"Content-Length": "0"}) for _ in range(10)]
    assert not any(is_by_gateway(answer) for answer in answers)


def test_the_only_pod_is_asked_again_as_soon_as_it_is_back(mesh: RunningMesh) -> None:
    door = mesh.doors["late"]
    assert {door.ask("/images/", "POST", {"Content-Length": "0"}).status for _ in range(10)} == {503}
    with ScriptedServer("answer", mesh.late_port).running():
        assert door.ask("/images/", "POST", {"Content-Length": "0"}).status == 200


# Within the mesh.

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


# gRPC.


def test_inference_by_grpc_goes_through(mesh: RunningMesh) -> None:
    for name in OVERLAYS:
        with called(mesh.doors[name]) as call:
            assert call("ServerLive", messages.ServerLiveRequest()).live
            request = messages.ModelInferRequest(model_name=MODEL, raw_input_contents=[join_elements([disc_jpeg(3)])])
            request.inputs.add(name="image", datatype="BYTES", shape=[1])
            assert [output.name for output in call("ModelInfer", request).outputs] == [
                *("boxes", "circles", "scores", "image_index")
            ]


def test_serve_s_own_service_is_not_there_by_grpc(door: Door) -> None:
    with called(door, "ray.serve.RayServeAPIService") as call:
        for method in ("Healthz", "ListApplications"):
            code = code_of(lambda method=method: call(method, messages.ServerLiveRequest()))
            assert code is grpc.StatusCode.UNIMPLEMENTED, method


@contextlib.contextmanager
def called(door: Door, service: str = SERVICE_NAME) -> Iterator[Any]:
    """A function that calls a method of the service with a request, and returns the answer."""
    options = [("grpc.ssl_target_name_override", door.host), ("grpc.default_authority", door.host)]
    credentials = grpc.ssl_channel_credentials(door.authority.certificate.read_bytes())
    with grpc.secure_channel(f"{door.address}:{door.https_port}", credentials, options) as channel:

        def call(method: str, request: Any) -> Any:
            response = getattr(messages, type(request).__name__.replace("Request", "Response"))
            unary = channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            return unary(request, timeout=30)

        yield call


def code_of(call: Any) -> grpc.StatusCode | None:
    """The status of a call that fails; None when it does not."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


# Tokens.


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a token as component ``jwt`` wants it."""
    objects = overlay_with("local", "jwt", tmp_path_factory.mktemp("jwt"))
    (rule,) = find(objects, "RequestAuthentication", "circles-jwt")["spec"]["jwtRules"]
    return {"iss": rule["issuer"], "aud": rule["audiences"][0], "sub": "somebody", "exp": time.time() + 600}


def signed(claims: dict[str, Any], key: rsa.RSAPrivateKey = SIGNING_KEY) -> dict[str, str]:
    """The header with such a token."""
    return {"Authorization": f"Bearer {jwt.encode(claims, key, 'RS256', {'kid': 'tests'})}"}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({}, 200, id="good"),
        pytest.param({"iss": "https://identity.example.com"}, 401, id="of another issuer"),
        pytest.param({"aud": "squares"}, 403, id="for another audience"),
        pytest.param({"exp": 1_000_000_000}, 401, id="expired"),
        pytest.param({"sub": None}, 403, id="of nobody"),
    ],
)
def test_token_decides(mesh: RunningMesh, claims: dict[str, Any], changes: dict[str, Any], status: int) -> None:
    token = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    assert mesh.doors["jwt"].ask("/images/", headers=signed(token)).status == status


def test_without_a_token_only_the_probes_are_answered(mesh: RunningMesh, claims: dict[str, Any]) -> None:
    door = mesh.doors["jwt"]
    for path in ("/health", "/health/", "/ready", "/ready/"):
        assert door.ask(path).status == 200, path
    closed = ["/", "/images/", "/api/v1/config", "/docs", "/health/../images/", "/healthx", "//health", "/v2"]
    for path in closed:
        assert door.ask(path).status == 403, path
    assert door.ask("/images/", headers={"Host": door.host.upper()}).status == 403
    assert door.ask("/images/", headers={"Host": f"{door.host}:443"}).status == 403
    assert door.ask("/images/", headers={"Authorization": "Bearer nonsense"}).status == 401
    assert door.ask_plainly("/images/").status == 403  # nobody is led on to send a token by plain HTTP first
    other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert door.ask("/images/", headers=signed(claims, other_key)).status == 401
    with called(door) as call:
        assert code_of(lambda: call("ServerLive", messages.ServerLiveRequest())) is grpc.StatusCode.PERMISSION_DENIED


def test_token_ends_at_the_gateway(mesh: RunningMesh, claims: dict[str, Any]) -> None:
    probe = uuid.uuid4().hex
    key = {"X-API-Key": "the application's own business"}
    assert mesh.doors["jwt"].ask(f"/images/?{probe}", headers=signed(claims) | key).status == 200
    (arrived,) = mesh.application.probed(probe)
    assert "authorization" not in arrived.headers
    assert "x-api-key" in arrived.headers
