"""What every inference protocol asks for, and what of the detections is answered."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from circles.detection import Detection, ImageDetections
from circles.errors import InferenceInputError
from circles.settings import Score
from deployments.quoting import shortened

MAX_INSTANCES = 64

TENSORS: dict[str, tuple[str, list[int]]] = {
    "boxes": ("FP32", [-1, 4]),
    "circles": ("FP32", [-1, 3]),
    "scores": ("FP32", [-1]),
    "image_index": ("INT64", [-1]),
}
"""Datatype and shape of every output tensor; -1 is the number of objects in all pictures."""

INPUT_NAME, INPUT_DATATYPE, INPUT_SHAPE = "image", "BYTES", [-1]
"""The one input tensor: encoded pictures."""


class InferenceParameters(BaseModel, extra="ignore"):
    """What a request may ask for beside its pictures."""

    min_score: Score | None = None
    """Objects scoring less are left out; the server's own threshold when unset."""
    label: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """What found objects are to be called, instead of the detector's own word."""
    format: Literal["default", "template"] = "default"
    """``template``: V1 answers in the form of the service that this one replaces, for a single picture."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Encoded pictures to detect in, 1 to ``MAX_INSTANCES``."""

    images: tuple[bytes, ...]
    parameters: InferenceParameters


def make_request(images: Sequence[bytes], parameters: Mapping[str, Any], max_image_bytes: int) -> InferenceRequest:
    """A checked request.

    Raises:
        InferenceInputError: Too few or too many pictures, one that is empty or too large, a parameter out of range.
    """
    try:
        checked = InferenceParameters.model_validate(dict(parameters))
    except ValidationError as error:
        raise InferenceInputError(f"parameters: {told(error)}") from error
    if not 1 <= len(images) <= MAX_INSTANCES:
        raise InferenceInputError(f"{len(images)} instances; 1 to {MAX_INSTANCES} are accepted")
    for index, image_bytes in enumerate(images):
        if not image_bytes:
            raise InferenceInputError(f"instance {index}: the picture has no bytes")
        if len(image_bytes) > max_image_bytes:
            raise InferenceInputError(f"instance {index}: more than {max_image_bytes} bytes are not accepted")
    if checked.format == "template" and len(images) != 1:
        raise InferenceInputError(f"the format 'template' has room for 1 instance, not for {len(images)}")
    return InferenceRequest(tuple(images), checked)


def told(error: ValidationError) -> str:
    """What is wrong with a body, in a line that names the instance at fault."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    place = [shortened(str(part)) for part in first["loc"]]
    if len(place) > 1 and place[0] == "instances":
        place[:2] = [f"instance {place[1]}"]
    line = ": ".join([*place, first["msg"]])
    return f"{line} (and {len(others)} more)" if others else line


def decode_base64(texts: Sequence[object]) -> list[bytes]:
    """Pictures out of base64 strings.

    Raises:
        InferenceInputError: One is not; the message names its index.
    """
    return [_decoded(text, index) for index, text in enumerate(texts)]


def answered(request: InferenceRequest, found: Sequence[ImageDetections], min_score: float) -> list[list[Detection]]:
    """What the request wants to know of each picture."""
    asked = request.parameters
    cut = min_score if asked.min_score is None else asked.min_score
    return [
        [
            each if asked.label is None else Detection(each.circle, each.bbox, each.score, asked.label)
            for each in image.detections
            if each.score >= cut
        ]
        for image in found
    ]


def output_tensors(
    request: InferenceRequest, found: Sequence[ImageDetections], min_score: float
) -> dict[str, NDArray[Any]]:
    """``TENSORS`` of what was found, M objects in all.

    Args:
        min_score: The threshold when the request names none.

    Returns:
        Little-endian, as protocols send them. boxes (M, 4): x_min, y_min, x_max, y_max; circles (M, 3): x, y, radius;
        px. scores (M,). image_index (M,): which picture the object is in. Picture by picture, best score first.
    """
    lists = answered(request, found, min_score)
    objects = [(index, each) for index, detections in enumerate(lists) for each in detections]
    circles = [(each.circle.center_x, each.circle.center_y, each.circle.radius) for _, each in objects]
    return {
        "boxes": np.array([each.bbox.as_tuple() for _, each in objects], "<f4").reshape(-1, 4),
        "circles": np.array(circles, "<f4").reshape(-1, 3),
        "scores": np.array([each.score for _, each in objects], "<f4"),
        "image_index": np.array([index for index, _ in objects], "<i8"),
    }


def _decoded(text: object, index: int) -> bytes:
    if not isinstance(text, str):
        raise InferenceInputError(f"instance {index}: the picture is not a base64 string")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InferenceInputError(f"instance {index}: the picture is not valid base64: {error}") from error
