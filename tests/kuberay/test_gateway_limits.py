"""What the gateway refuses, gives up and tries again, through a real Envoy configured from the rendered objects."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from circles.settings import Settings
from deployments.inference import open_inference_pb2 as messages
from deployments.problems import PROBLEM_MEDIA_TYPE
from deployments.uploads import MAX_BATCH_FILES
from tests.kuberay.mesh import Door, RunningMesh, read_answer
from tests.kuberay.scaled_mesh import BUCKET, MODEL, TIME_SCALE, called, code_of, is_by_gateway
from tests.kuberay.upstreams import ScriptedServer
from tests.running import wait_until

SINGLE_BYTES = 25 * 2**20 + 64 * 1024


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
            # Timers are some milliseconds coarse, and no slack makes one timeout of another.
            assert 0.9 * expected_s <= took_s < expected_s + 3, asked
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
