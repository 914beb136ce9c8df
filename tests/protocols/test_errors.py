"""Every way to be wrong, and that each protocol tells it in its own form, with the instance at fault."""

import asyncio
import base64
import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx2
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.pictures import disc_jpeg, encode, two_discs
from tests.protocols.clients import MODEL, InferenceServer, v1_request, v2_request

GOOD = disc_jpeg(1)
BAD_PICTURES = [
    pytest.param(b"hello, this is text\n", "accepted format", id="text"),
    pytest.param(disc_jpeg(1)[:-2000], "ends early", id="truncated JPEG"),
    pytest.param(encode(two_discs(1).image, "PNG")[:-2000], "damaged or ends early", id="truncated PNG"),
    pytest.param(b"", "no bytes", id="empty"),
]


def assert_refused(response: httpx2.Response, status: int, reason: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert reason in response.json()["error"]
    assert "Traceback" not in response.text


def post_v1(server: InferenceServer, body: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return httpx2.post(f"{server.url}/v1/models/{MODEL}:predict", content=content, headers=headers, timeout=60)


def post_v2(server: InferenceServer, body: Any, headers: dict[str, str] | None = None) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{server.url}/v2/models/{MODEL}/infer", content=content, headers=headers, timeout=60)


def tensor(*data: Any, **changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": list(data), **changes}


def text(image_bytes: bytes) -> str:
    return base64.b64encode(image_bytes).decode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param({}, "instances: Field required", id="no instances"),
        pytest.param({"instances": []}, "at least 1 item", id="empty list"),
        pytest.param({"instances": {"image": 1}}, "valid array", id="not a list"),
        pytest.param({"instances": [{"image": {"b64": text(GOOD)}}, 7]}, "instance 1:", id="not an object"),
        pytest.param(
            {"instances": [{"image": {"b64": text(GOOD)}}, {"image": {"b64": 7}}]}, "instance 1:", id="number"
        ),
        pytest.param(
            {"instances": [{"image": {"b64": "a%b"}}]}, "instance 0: the picture is not valid base64", id="b64"
        ),
        pytest.param({"instances": [{"image": {"b64": "é"}}]}, "instance 0: the picture is not valid base64", id="é"),
        pytest.param({"instances": [{"image": {"b64": ""}}] * 1000}, "at most 64 items", id="1000 instances"),
        pytest.param(b"", "Invalid JSON", id="no body"),
        pytest.param(b'{"instances": [', "Invalid JSON", id="half a body"),
        pytest.param(b"[" * 100_000, "Invalid JSON", id="deeply nested"),
        pytest.param(b"\xff\xfe{}", "Invalid JSON", id="not text"),
        pytest.param([], "object", id="a list"),
        pytest.param(v1_request([GOOD], {"min_score": 2}), "min_score", id="threshold above 1"),
        pytest.param(v1_request([GOOD], {"min_score": float("nan")}), "min_score", id="threshold not a number"),
        pytest.param(v1_request([GOOD], {"label": ""}), "label", id="empty label"),
        pytest.param(v1_request([GOOD], {"format": "nope"}), "format", id="unknown format"),
        pytest.param(v1_request([GOOD] * 2, {"format": "template"}), "1 instance", id="template with two"),
        pytest.param({**v1_request([GOOD]), "parameters": 7}, "parameters", id="parameters not an object"),
    ],
)
def test_bad_v1_bodies(server: InferenceServer, body: Any, reason: str) -> None:
    assert_refused(post_v1(server, body), 400, reason)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param({}, "inputs: Field required", id="no inputs"),
        pytest.param({"inputs": []}, "0 inputs; one is expected", id="empty list"),
        pytest.param({"inputs": [tensor(text(GOOD))] * 2}, "2 inputs; one is expected", id="two inputs"),
        pytest.param({"inputs": [tensor()]}, "0 instances", id="no elements"),
        pytest.param({"inputs": [tensor(text(GOOD), name="x")]}, "input 'x'", id="other name"),
        pytest.param({"inputs": [tensor(1.5, datatype="FP32")]}, "instance 0", id="other datatype"),
        pytest.param({"inputs": [tensor(text(GOOD), shape=[2])]}, "shape [2]", id="other shape"),
        pytest.param({"inputs": [tensor(text(GOOD), shape=[-1])]}, "shape [-1]", id="negative shape"),
        pytest.param({"inputs": [tensor(text(GOOD), data=None)]}, "neither 'data'", id="no data"),
        pytest.param({"inputs": [tensor(text(GOOD), "a%b")]}, "instance 1: the picture is not valid base64", id="b64"),
        pytest.param({"inputs": [tensor(*["YQ=="] * 1000)]}, "data: List should have at most 64", id="1000 instances"),
        pytest.param({"inputs": [tensor(text(GOOD), shape=[1] * 9)]}, "shape: List should have at most 2", id="shape"),
        pytest.param(
            {"inputs": [tensor(text(GOOD))], "outputs": [{"name": "boxes"}] * 9},
            "outputs: List should have at most 4 items",
            id="nine outputs",
        ),
        pytest.param(
            {"inputs": [tensor(text(GOOD))], "outputs": [{"name": "x"}]}, "no output 'x'", id="unknown output"
        ),
        pytest.param({"inputs": [tensor(text(GOOD))], "parameters": {"min_score": 2}}, "min_score", id="threshold"),
        pytest.param(
            {"inputs": [tensor(text(GOOD), data=None, parameters={"binary_data_size": 9})]}, "0 bytes follow", id="size"
        ),
        pytest.param(b"nope", "Invalid JSON", id="not JSON"),
    ],
)
def test_bad_v2_bodies(server: InferenceServer, body: Any, reason: str) -> None:
    assert_refused(post_v2(server, body), 400, reason)


@pytest.mark.parametrize(
    ("header_length", "binary", "reason"),
    [
        ("nope", b"", "is 'nope'"),
        ("-1", b"", "is '-1'"),
        ("1000000", b"", "is '1000000'"),
        ("9" * 5000, b"", "is '9999"),
        (None, b"\1\0\0", "within the length of element 0"),
        (None, b"\xff\xff\xff\xff....", "within element 0"),
        (None, len(GOOD).to_bytes(4, "little") + GOOD + b"\x09\0\0\0abc", "within element 1"),
    ],
)
def test_bad_binary_tensors(server: InferenceServer, header_length: str | None, binary: bytes, reason: str) -> None:
    head = json.dumps({"inputs": [tensor(data=None, shape=[1], parameters={"binary_data_size": len(binary)})]}).encode()
    headers = {"Inference-Header-Content-Length": header_length or str(len(head))}
    assert_refused(post_v2(server, head + binary, headers), 400, reason)


@pytest.mark.parametrize(("picture", "reason"), BAD_PICTURES)
def test_one_bad_picture_is_named_by_its_index(server: InferenceServer, picture: bytes, reason: str) -> None:
    images = [GOOD, picture, GOOD]
    assert_refused(post_v1(server, v1_request(images)), 400, "instance 1: ")
    assert_refused(post_v1(server, v1_request(images)), 400, reason)
    body = {"inputs": [tensor(*map(text, images))]}
    assert_refused(post_v2(server, body), 400, "instance 1: ")
    code, details = grpc_failure(server, lambda: v2_request(images, {}, is_binary=True).to_grpc())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("instance 1: ")
    assert reason in details


def grpc_failure(server: InferenceServer, request: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Status and details of a refused call, made with KServe's stub: its client takes only what it deems right."""

    async def ask() -> tuple[grpc.StatusCode, str]:
        async with server.grpc_channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await GRPCInferenceServiceStub(channel).ModelInfer(request(), timeout=60)
        return refusal.value.code(), refusal.value.details() or ""

    return asyncio.run(ask())


def raw_request(**changes: Any) -> kserve_messages.ModelInferRequest:
    fields = {
        "model_name": MODEL,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
        "raw_input_contents": [len(GOOD).to_bytes(4, "little") + GOOD],
        **changes,
    }
    return kserve_messages.ModelInferRequest(**fields)


@pytest.mark.parametrize(
    ("request_of", "code", "reason"),
    [
        pytest.param(lambda: raw_request(model_name="nope"), "NOT_FOUND", "no model 'nope'", id="unknown model"),
        pytest.param(lambda: raw_request(model_version="9"), "NOT_FOUND", "no version '9'", id="unknown version"),
        pytest.param(lambda: raw_request(model_name="n" * 10**6), "NOT_FOUND", "nnn...'", id="name of 1 MB"),
        pytest.param(lambda: raw_request(model_version="v" * 10**6), "NOT_FOUND", "vvv...'", id="version of 1 MB"),
        pytest.param(lambda: raw_request(inputs=[]), "INVALID_ARGUMENT", "0 inputs", id="no inputs"),
        pytest.param(lambda: raw_request(raw_input_contents=[]), "INVALID_ARGUMENT", "0 elements", id="no contents"),
        pytest.param(
            lambda: raw_request(raw_input_contents=[b"\1"]), "INVALID_ARGUMENT", "element 0", id="bad lengths"
        ),
        pytest.param(lambda: raw_request(outputs=[{"name": "x"}]), "INVALID_ARGUMENT", "no output 'x'", id="output"),
        pytest.param(
            lambda: raw_request(outputs=[{"name": "boxes"}] * 9), "INVALID_ARGUMENT", "9 outputs", id="nine outputs"
        ),
        pytest.param(
            lambda: v2_request([GOOD] * 65, {}, is_binary=True).to_grpc(),
            "INVALID_ARGUMENT",
            "more than 64 elements",
            id="65 instances",
        ),
        pytest.param(
            lambda: v2_request([GOOD], {"min_score": "2"}, is_binary=True).to_grpc(),
            "INVALID_ARGUMENT",
            "min_score",
            id="threshold",
        ),
    ],
)
def test_bad_grpc_requests(server: InferenceServer, request_of: Callable[[], Any], code: str, reason: str) -> None:
    found, details = grpc_failure(server, request_of)
    assert (found.name, reason in details) == (code, True), details


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/nope"),
        ("POST", "/v1/models/nope:predict"),
        ("GET", "/v2/models/nope"),
        ("GET", "/v2/models/nope/ready"),
        ("POST", "/v2/models/nope/infer"),
        ("GET", f"/v2/models/{MODEL}/versions/9"),
        ("GET", f"/v2/models/{MODEL}/versions/9/ready"),
        ("POST", f"/v2/models/{MODEL}/versions/9/infer"),
    ],
)
def test_unknown_models_and_versions(server: InferenceServer, method: str, path: str) -> None:
    assert_refused(httpx2.request(method, server.url + path), 404, "there is")


@pytest.mark.parametrize("path", [f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"])
def test_oversized_body_is_refused_unread(server: InferenceServer, path: str) -> None:
    """A body of 100 MB is announced, none of it is sent, and the answer comes all the same."""
    address = urlsplit(server.url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head.encode())
        answer = b""
        while b'{"error":' not in answer:
            received = connection.recv(65536)
            assert received, answer
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_picture_above_the_upload_limit_is_refused(server: InferenceServer) -> None:
    huge = GOOD + b"\0" * (26 * 2**20)
    assert_refused(post_v1(server, v1_request([GOOD, huge])), 400, "instance 1: more than 26214400 bytes")


def test_oversized_grpc_message_is_refused(server: InferenceServer) -> None:
    code, _ = grpc_failure(server, lambda: raw_request(raw_input_contents=[b"\0" * (65 * 2**20)]))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
