"""KServe's V1 protocol: ``{"instances": [...]}`` asked, ``{"predictions": [...]}`` answered."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from circles.detection import Detection, ImageDetections
from circles.errors import InferenceInputError
from deployments.inference.requests import (
    MAX_INSTANCES,
    InferenceParameters,
    InferenceRequest,
    answered,
    decode_base64,
    make_request,
    told,
)


class Picture(BaseModel):
    """An encoded picture in JSON."""

    b64: str = Field(description="its bytes in base64")


class Instance(BaseModel):
    """What a V1 request asks about."""

    image: Picture


class PredictBody(BaseModel):
    """A V1 request."""

    instances: list[Instance] = Field(min_length=1, max_length=MAX_INSTANCES)
    parameters: InferenceParameters = InferenceParameters()


def read_request(content: bytes, max_image_bytes: int) -> InferenceRequest:
    """The request in a V1 body.

    Raises:
        InferenceInputError: It is not a ``PredictBody``, or as ``make_request``.
    """
    try:
        body = PredictBody.model_validate_json(content)
    except ValidationError as error:
        raise InferenceInputError(told(error)) from error
    images = decode_base64([instance.image.b64 for instance in body.instances])
    return make_request(images, body.parameters.model_dump(), max_image_bytes)


def write_request(images: Sequence[bytes], parameters: Mapping[str, Any]) -> bytes:
    """The body of a V1 request."""
    instances = [{"image": {"b64": base64.b64encode(image_bytes).decode("ascii")}} for image_bytes in images]
    return json.dumps({"instances": instances, "parameters": dict(parameters)}).encode()


def answer(request: InferenceRequest, found: Sequence[ImageDetections], min_score: float) -> bytes:
    """The V1 body of what was found: a list of objects for every picture, or the template's flat list.

    Args:
        min_score: The threshold when the request names none.
    """
    lists = answered(request, found, min_score)
    if request.parameters.format == "template":
        return to_json({"predictions": [_template_object(each) for each in lists[0]]})
    return to_json({"predictions": [[_object(each) for each in detections] for detections in lists]})


def _object(detection: Detection) -> dict[str, object]:
    circle = detection.circle
    return {
        "label": detection.label,
        "bbox": detection.bbox.as_tuple(),
        "centroid": {"x": circle.center_x, "y": circle.center_y},
        "radius": circle.radius,
        "score": detection.score,
    }


def _template_object(detection: Detection) -> dict[str, object]:
    circle, bbox = detection.circle, detection.bbox
    return {
        "bounding_box": {
            "xmin": round(bbox.x_min),
            "ymin": round(bbox.y_min),
            "xmax": round(bbox.x_max),
            "ymax": round(bbox.y_max),
        },
        "centroid": {"x": round(circle.center_x), "y": round(circle.center_y)},
        "radius": {"radius": round(circle.radius)},
        "label": detection.label,
        "score": detection.score,
    }
