"""The Open Inference Protocol ("V2") over REST: bodies of requests and responses, with and without binary tensors.

The protocol: https://github.com/kserve/open-inference-protocol; binary tensors, where raw bytes follow the JSON and
``Inference-Header-Content-Length`` says how long that is: the binary tensor data extension of Triton and KServe.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

import circles
from circles.detection import ImageDetections
from circles.errors import InferenceInputError
from deployments.inference.requests import (
    INPUT_DATATYPE,
    INPUT_NAME,
    INPUT_SHAPE,
    MAX_INSTANCES,
    TENSORS,
    InferenceRequest,
    decode_base64,
    make_request,
    output_tensors,
    told,
)
from deployments.inference.served_model import ServedModel
from deployments.quoting import shortened

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Of binary requests and responses: bytes of the JSON that the tensors follow."""

BINARY_EXTENSION = "binary_tensor_data"
BINARY_MEDIA_TYPE = "application/octet-stream"

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
_HEADER_LENGTH = re.compile("[0-9]{1,15}")
_LENGTH = struct.Struct("<I")  # in front of each element of a binary BYTES tensor

# What a body may list is bounded: pydantic makes an error, of some hundred times its size, for each element at fault.
Parameters = Annotated[dict[str, str | bool | int | float], Field(max_length=32, fail_fast=True)]


class InputTensor(BaseModel):
    """One input of a request's JSON."""

    name: str
    shape: list[int] = Field(max_length=2)
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = Field(None, max_length=MAX_INSTANCES)


class RequestedOutput(BaseModel):
    """One output that a request asks for."""

    name: str
    parameters: Parameters = {}


class InferBody(BaseModel):
    """A request's JSON."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[InputTensor] = Field(max_length=2, fail_fast=True)  # of which one is refused below, in our words
    outputs: list[RequestedOutput] | None = Field(None, max_length=len(TENSORS))


@dataclass(frozen=True, slots=True)
class RestRequest:
    """A request, and how it wants to be answered."""

    request: InferenceRequest
    request_id: str | None
    outputs: tuple[tuple[str, bool], ...]
    """Names of the tensors to answer, and whether each is to be binary."""


def server_metadata(model: ServedModel) -> dict[str, Any]:
    """What speaks here, and the extensions of the protocol that it knows."""
    return {"name": "circles", "version": circles.__version__, "extensions": model.extensions}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """The model's version, inputs and outputs; -1 is the number of pictures, or of objects in all of them."""
    return {
        "name": model.settings.model_name,
        "versions": model.versions,
        "platform": "circles",
        "inputs": [{"name": INPUT_NAME, "datatype": INPUT_DATATYPE, "shape": INPUT_SHAPE}],
        "outputs": [{"name": key, "datatype": datatype, "shape": shape} for key, (datatype, shape) in TENSORS.items()],
    }


def read_request(body: bytes, header_length: str | None, max_image_bytes: int) -> RestRequest:
    """The request in a body.

    Args:
        header_length: Value of ``HEADER_LENGTH``; None when the body is JSON alone.

    Raises:
        InferenceInputError: It is not a request of the protocol, or not one for this detector.
    """
    head, binary = _split(body, header_length)
    try:
        parsed = InferBody.model_validate_json(head)
    except ValidationError as error:
        raise InferenceInputError(told(error)) from error
    check_inputs(len(parsed.inputs))
    (tensor,) = parsed.inputs
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if binary:
            raise InferenceInputError("bytes follow the JSON, but no input has a 'binary_data_size'")
        images = decode_base64(_flat(tensor.data))
    else:
        if size != len(binary):
            raise InferenceInputError(
                f"'binary_data_size' is {shortened(str(size))}, but {len(binary)} bytes follow the JSON"
            )
        images = split_elements(binary)
    check_tensor(tensor.name, tensor.datatype, tensor.shape, len(images))
    request = make_request(images, parsed.parameters, max_image_bytes)
    return RestRequest(request, parsed.id, _outputs(parsed))


def write_request(images: Sequence[bytes], parameters: Mapping[str, str | bool | int | float]) -> tuple[bytes, int]:
    """The body of a binary request that asks for binary answers, and the length of its JSON."""
    binary = join_elements(images)
    tensor = {
        "name": INPUT_NAME,
        "shape": [len(images)],
        "datatype": INPUT_DATATYPE,
        "parameters": {"binary_data_size": len(binary)},
    }
    asked: Parameters = {**parameters, "binary_data_output": True}
    head = _json({"inputs": [tensor], "parameters": asked})
    return head + binary, len(head)


def write_response(
    asked: RestRequest, found: Sequence[ImageDetections], min_score: float, name: str
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON where binary tensors follow it.

    Args:
        min_score: The threshold when the request names none.
        name: Of the model.
    """
    tensors = output_tensors(asked.request, found, min_score)
    version = found[0].detector.version
    outputs: list[dict[str, object]] = []
    parts: list[bytes] = []
    for key, is_binary in asked.outputs:
        tensor = tensors[key]
        output: dict[str, object] = {"name": key, "shape": list(tensor.shape), "datatype": TENSORS[key][0]}
        if is_binary:
            parts.append(tensor.tobytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = tensor.ravel().tolist()
        outputs.append(output)
    body = {"model_name": name, "model_version": version, "id": asked.request_id, "outputs": outputs}
    head = _json({key: value for key, value in body.items() if value is not None})
    return head + b"".join(parts), len(head) if parts else None


def read_response(body: bytes, header_length: str | None) -> tuple[dict[str, NDArray[Any]], str]:
    """Tensors of a response by name, and the model's version.

    Raises:
        InferenceInputError: It is not a response of the protocol.
    """
    head, binary = _split(body, header_length)
    tensors: dict[str, NDArray[Any]] = {}
    try:
        parsed = json.loads(head)
        offset = 0
        for output in parsed["outputs"]:
            dtype = _NUMPY_TYPES[output["datatype"]]
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                tensor = np.array(output["data"], dtype)
            else:
                tensor = np.frombuffer(binary[offset : offset + size], dtype)
                offset += size
            tensors[output["name"]] = tensor.reshape(output["shape"])
        return tensors, str(parsed.get("model_version", ""))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InferenceInputError(f"not a response of the Open Inference Protocol: {error!r}") from error


def split_elements(binary: bytes) -> list[bytes]:
    """The elements of a binary BYTES tensor, each of which its length stands before.

    Raises:
        InferenceInputError: The lengths do not add up, or there are more than ``MAX_INSTANCES``.
    """
    elements: list[bytes] = []
    offset = 0
    while offset < len(binary):
        if len(elements) == MAX_INSTANCES:
            raise InferenceInputError(f"the binary tensor has more than {MAX_INSTANCES} elements")
        start = offset + _LENGTH.size
        if start > len(binary):
            raise InferenceInputError(f"the binary tensor ends within the length of element {len(elements)}")
        (length,) = _LENGTH.unpack_from(binary, offset)
        offset = start + length
        if offset > len(binary):
            raise InferenceInputError(f"the binary tensor ends within element {len(elements)}")
        elements.append(binary[start:offset])
    return elements


def join_elements(elements: Sequence[bytes]) -> bytes:
    """A binary BYTES tensor of these elements."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def check_inputs(count: int) -> None:
    """
    Raises:
        InferenceInputError: It is not the one input that there is.
    """
    if count != 1:
        raise InferenceInputError(f"{count} inputs; one is expected, '{INPUT_NAME}'")


def check_tensor(name: str, datatype: str, shape: Sequence[int], count: int) -> None:
    """Whether an input tensor is the one that the detector takes.

    Args:
        count: Of its elements.

    Raises:
        InferenceInputError: It is not.
    """
    if name != INPUT_NAME or datatype != INPUT_DATATYPE:
        raise InferenceInputError(
            f"input '{shortened(name)}' of datatype {shortened(datatype)}; the one input is '{INPUT_NAME}' of datatype "
            f"{INPUT_DATATYPE}"
        )
    is_column = len(shape) == 2 and shape[1] == 1
    if not (len(shape) == 1 or is_column) or shape[0] != count:
        told_shape = shortened(str(list(shape[:3])))
        raise InferenceInputError(f"input '{name}' has shape {told_shape}, but {count} elements; [N] is expected")


def check_outputs(names: Sequence[str]) -> None:
    """Whether these outputs can be asked for.

    Raises:
        InferenceInputError: One cannot, or there are more than there can be.
    """
    if len(names) > len(TENSORS):
        raise InferenceInputError(f"{len(names)} outputs; at most {len(TENSORS)} can be asked for")
    unknown = [name for name in names if name not in TENSORS]
    if unknown:
        raise InferenceInputError(f"there is no output '{shortened(unknown[0])}'; there are {', '.join(TENSORS)}")


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not _HEADER_LENGTH.fullmatch(header_length) or int(header_length) > len(body):
        raise InferenceInputError(f"{HEADER_LENGTH} is '{header_length[:20]}', but the body has {len(body)} bytes")
    length = int(header_length)
    return body[:length], body[length:]


def _flat(data: list[Any] | None) -> list[Any]:
    """[N] as it is, [N, 1] flattened."""
    if data is None:
        raise InferenceInputError(f"input '{INPUT_NAME}' has neither 'data' nor a 'binary_data_size'")
    return [element[0] if isinstance(element, list) and len(element) == 1 else element for element in data]


def _outputs(parsed: InferBody) -> tuple[tuple[str, bool], ...]:
    is_binary = bool(parsed.parameters.get("binary_data_output", False))
    if parsed.outputs is None:
        return tuple((name, is_binary) for name in TENSORS)
    check_outputs([output.name for output in parsed.outputs])
    return tuple((output.name, bool(output.parameters.get("binary_data", is_binary))) for output in parsed.outputs)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
