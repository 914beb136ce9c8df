"""KServe's own clients, asked for pictures by each protocol."""

import asyncio
import base64
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    RESTConfig,
)
from numpy.typing import NDArray

from circles.detection import Detection

MODEL = "circle-detector"
Rows = NDArray[np.float64]
"""(M, 8): box (4), circle (3) and score of every object."""


@dataclass(frozen=True)
class InferenceServer:
    """Where the protocols are served."""

    url: str
    grpc_address: str
    is_elsewhere: bool = False
    """Whether it detects at a model server, and so knows all numbers with the 32 bits in which V2 sends them."""

    @property
    def has_tls(self) -> bool:
        """Whether a gateway is in front, for gRPC as for HTTP."""
        return self.url.startswith("https:")

    def grpc_channel(self) -> grpc.aio.Channel:
        """For answers and requests of any size; certificates are those of GRPC_DEFAULT_SSL_ROOTS_FILE_PATH."""
        if self.has_tls:
            return grpc.aio.secure_channel(self.grpc_address, grpc.ssl_channel_credentials(), options=large_messages())
        return grpc.aio.insecure_channel(self.grpc_address, options=large_messages())


def rows_of(detections: Sequence[Detection]) -> Rows:
    """What the detector itself says."""
    rows = [
        (*each.bbox.as_tuple(), each.circle.center_x, each.circle.center_y, each.circle.radius, each.score)
        for each in detections
    ]
    return np.array(rows, np.float64).reshape(-1, 8)


def ask(
    protocol: str, server: InferenceServer, images: Sequence[bytes], parameters: dict[str, Any] | None = None
) -> list[Rows]:
    """What the server answers for every picture."""
    return asyncio.run(_asked_by(protocol)(server, images, parameters or {}))


def v1_request(images: Sequence[bytes], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """The body of a V1 request."""
    instances = [{"image": {"b64": base64.b64encode(image_bytes).decode()}} for image_bytes in images]
    return {"instances": instances, "parameters": parameters or {}}


def v2_request(images: Sequence[bytes], parameters: dict[str, Any], *, is_binary: bool) -> InferRequest:
    """A V2 request: raw bytes, or base64 strings."""
    tensor = InferInput("image", [len(images)], "BYTES")
    elements = images if is_binary else [base64.b64encode(image_bytes) for image_bytes in images]
    tensor.set_data_from_numpy(np.array(elements, np.object_), binary_data=is_binary)
    return InferRequest(MODEL, [tensor], parameters=parameters)


Asking = Callable[[InferenceServer, Sequence[bytes], dict[str, Any]], Coroutine[Any, Any, list[Rows]]]


def _asked_by(protocol: str) -> Asking:
    return {"v1": _ask_v1, "v2 json": _ask_v2_json, "v2 binary": _ask_v2_binary, "grpc": _ask_grpc}[protocol]


async def _ask_v1(server: InferenceServer, images: Sequence[bytes], parameters: dict[str, Any]) -> list[Rows]:
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=60)) as client:
        answer = await client.infer(server.url, v1_request(images, parameters), MODEL)
    return [_rows_of_v1(objects) for objects in answer["predictions"]]


def _rows_of_v1(objects: list[dict[str, Any]]) -> Rows:
    rows = [
        (*each["bbox"], each["centroid"]["x"], each["centroid"]["y"], each["radius"], each["score"]) for each in objects
    ]
    return np.array(rows, np.float64).reshape(-1, 8)


async def _ask_v2_json(server: InferenceServer, images: Sequence[bytes], parameters: dict[str, Any]) -> list[Rows]:
    return await _ask_v2(server, v2_request(images, parameters, is_binary=False), len(images))


async def _ask_v2_binary(server: InferenceServer, images: Sequence[bytes], parameters: dict[str, Any]) -> list[Rows]:
    asked = v2_request(images, {**parameters, "binary_data_output": True}, is_binary=True)
    return await _ask_v2(server, asked, len(images))


async def _ask_v2(server: InferenceServer, asked: InferRequest, count: int) -> list[Rows]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        return _rows_of_v2(await client.infer(server.url, asked, MODEL), count)


async def _ask_grpc(server: InferenceServer, images: Sequence[bytes], parameters: dict[str, Any]) -> list[Rows]:
    # KServe's client has no parameters that are fractions.
    asked = v2_request(images, {key: str(value) for key, value in parameters.items()}, is_binary=True)
    async with InferenceGRPCClient(
        server.grpc_address, use_ssl=server.has_tls, channel_args=large_messages()
    ) as client:
        return _rows_of_v2(await client.infer(asked), len(images))


def large_messages() -> list[tuple[str, int]]:
    """Options of a gRPC channel for answers and requests of any size."""
    return [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def _rows_of_v2(answer: InferResponse, count: int) -> list[Rows]:
    tensors = {output.name: output.as_numpy() for output in answer.outputs}
    rows = np.concatenate([tensors["boxes"], tensors["circles"], tensors["scores"][:, None]], axis=1)
    return [rows[tensors["image_index"] == index].astype(np.float64) for index in range(count)]
