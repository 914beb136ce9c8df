"""The ways by which a picture comes to a service, and what each says of it."""

import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import httpx2

from circles.settings import Settings
from deployments.inference import open_inference_pb2 as messages
from deployments.inference import v1, v2_rest
from deployments.inference.requests import INPUT_DATATYPE, INPUT_NAME
from deployments.inference.v2_grpc import SERVICE_NAME
from deployments.problems import PROBLEM_MEDIA_TYPE

_MODEL = Settings.model_fields["model_name"].default
_GIVE_UP_S = 60.0

Verdict = Literal["accepted", "refused", "pending", "wrong"]
"""``wrong``: what no answer to any file may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one door said of a file."""

    door: str
    status: str
    verdict: Verdict
    seconds: float
    detail: str = ""
    image_id: str | None = None


Door = Callable[[bytes, str], Awaitable[Answer]]
"""Asks about a file of this name."""


@contextlib.asynccontextmanager
async def opened_doors(url: str, grpc_address: str | None) -> AsyncIterator[dict[str, Door]]:
    """All doors of a service; the first two of them keep what they accept."""
    async with contextlib.AsyncExitStack() as stack:
        client = httpx2.AsyncClient(base_url=url, timeout=_GIVE_UP_S, trust_env=False)
        await stack.enter_async_context(client)
        doors: dict[str, Door] = {
            "REST": lambda content, name: _upload(client, content, name),
            "batch": lambda content, name: _upload_batch(client, content, name),
            "V1 raw": lambda content, _: _infer(client, "V1 raw", _v1_path(), content, {"Content-Type": "image/x"}),
            "V1 base64": lambda content, _: _infer(
                client, "V1 base64", _v1_path(), v1.write_request([content], {}), {}
            ),
            "V2 JSON": lambda content, _: _infer(client, "V2 JSON", _v2_path(), _v2_json(content), {}),
            "V2 binary": lambda content, _: _infer(client, "V2 binary", _v2_path(), *_v2_binary(content)),
        }
        if grpc_address is not None:
            limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(grpc_address, options=limits))
            doors["gRPC"] = lambda content, _: _infer_by_grpc(channel, content)
        yield doors


async def _upload(client: httpx2.AsyncClient, content: bytes, name: str) -> Answer:
    """As a form, or for every other name as the body itself."""
    start = time.monotonic()
    try:
        if sum(name.encode(errors="surrogateescape")) % 2:
            response = await client.post("/images/", files={"file": (f"{name}.jpg", content)})
        else:
            response = await client.post("/images/", content=content, headers={"Content-Type": "image/jpeg"})
    except httpx2.HTTPError as error:
        return _dropped("REST", error, start)
    seconds = time.monotonic() - start
    if response.is_success:
        return _kept("REST", response.status_code, response.json(), seconds)
    if response.headers["Content-Type"] == PROBLEM_MEDIA_TYPE:
        return _refused("REST", response.status_code, response.json(), seconds)
    return Answer("REST", str(response.status_code), "wrong", seconds, response.text[:300])


async def _upload_batch(client: httpx2.AsyncClient, content: bytes, name: str) -> Answer:
    """As a batch of one."""
    start = time.monotonic()
    try:
        response = await client.post("/images/batch", files={"files": (name, content)})
    except httpx2.HTTPError as error:
        return _dropped("batch", error, start)
    seconds = time.monotonic() - start
    if response.status_code != 200:
        return Answer("batch", str(response.status_code), "wrong", seconds, response.text[:300])
    (result,) = response.json()["results"]
    if result["image"] is not None:
        return _kept("batch", result["status"], result["image"], seconds)
    return _refused("batch", result["status"], result["problem"], seconds)


def _kept(door: str, status: int, image: dict[str, Any], seconds: float) -> Answer:
    verdict: Verdict = "accepted" if image["status"] == "done" else "pending"
    return Answer(door, str(status), verdict, seconds, image_id=image["image_id"])


def _refused(door: str, status: int, problem: dict[str, Any], seconds: float) -> Answer:
    is_refusal = 400 <= status < 500 and status != 429 and problem["status"] == status and problem["detail"]
    is_silent = "Traceback" not in problem["detail"] and "File " not in problem["detail"]
    return Answer(door, str(status), "refused" if is_refusal and is_silent else "wrong", seconds, str(problem)[:300])


async def _infer(client: httpx2.AsyncClient, door: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    start = time.monotonic()
    try:
        response = await client.post(path, content=body, headers={"Content-Type": "application/json", **headers})
    except httpx2.HTTPError as error:
        return _dropped(door, error, start)
    seconds = time.monotonic() - start
    if response.status_code == 200:
        return Answer(door, "200", "accepted", seconds)
    is_error = response.status_code in (400, 413) and set(response.json()) == {"error"}
    is_refusal = is_error and "Traceback" not in response.text
    verdict: Verdict = "refused" if is_refusal else "wrong"
    return Answer(door, str(response.status_code), verdict, seconds, response.text[:300])


async def _infer_by_grpc(channel: grpc.aio.Channel, content: bytes) -> Answer:
    infer = channel.unary_unary(
        f"/{SERVICE_NAME}/ModelInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )
    tensor = messages.InferInputTensor(name=INPUT_NAME, datatype=INPUT_DATATYPE, shape=[1])
    raw = [v2_rest.join_elements([content])]
    start = time.monotonic()
    try:
        await infer(
            messages.ModelInferRequest(model_name=_MODEL, inputs=[tensor], raw_input_contents=raw), timeout=_GIVE_UP_S
        )
    except grpc.aio.AioRpcError as error:
        verdict: Verdict = "refused" if error.code() is grpc.StatusCode.INVALID_ARGUMENT else "wrong"
        return Answer("gRPC", error.code().name, verdict, time.monotonic() - start, (error.details() or "")[:300])
    return Answer("gRPC", "OK", "accepted", time.monotonic() - start)


def _dropped(door: str, error: Exception, start: float) -> Answer:
    return Answer(door, type(error).__name__, "wrong", time.monotonic() - start, str(error))


def _v1_path() -> str:
    return f"/v1/models/{_MODEL}:predict"


def _v2_path() -> str:
    return f"/v2/models/{_MODEL}/infer"


def _v2_json(content: bytes) -> bytes:
    data = base64.b64encode(content)
    head = f'{{"inputs": [{{"name": "{INPUT_NAME}", "datatype": "{INPUT_DATATYPE}", "shape": [1], "data": ["'
    return head.encode() + data + b'"]}]}'


def _v2_binary(content: bytes) -> tuple[bytes, dict[str, str]]:
    body, header_length = v2_rest.write_request([content], {})
    return body, {"Content-Type": v2_rest.BINARY_MEDIA_TYPE, v2_rest.HEADER_LENGTH: str(header_length)}
