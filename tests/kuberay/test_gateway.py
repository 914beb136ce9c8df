"""What the gateway lets in, and where it leads, tried through a real Envoy configured from the rendered objects."""

import posixpath
import socket
import ssl
import uuid

import grpc
import numpy as np
import pytest

from circles.settings import Settings
from deployments.inference import open_inference_pb2 as messages
from deployments.inference.v2_rest import join_elements
from tests.kuberay.manifests import OVERLAYS
from tests.kuberay.mesh import Door, RunningMesh
from tests.kuberay.scaled_mesh import MODEL, called, code_of, is_by_gateway
from tests.pictures import disc_jpeg, encode


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
