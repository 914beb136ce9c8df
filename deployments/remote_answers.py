"""What endpoints of the inference protocols answer, read with the caution that somebody else's answers ask for."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasPath, BaseModel, Field, ValidationError
from pydantic.types import FiniteFloat

from circles.detection import Detection
from circles.errors import InferenceInputError
from circles.geometry import BBox, Circle
from circles.settings import Score
from deployments.inference.requests import told

_MAX_NAME_LENGTH = 64


def detections_of_v1(content: bytes) -> list[Detection]:
    """One picture's objects in a V1 answer: a list in the list of predictions, or all of that list.

    Raises:
        InferenceInputError: It holds something else.
    """
    try:
        predictions = _Predictions.model_validate_json(content).predictions
    except ValidationError as error:
        raise InferenceInputError(told(error)) from error
    objects = [each for entry in predictions for each in (entry if isinstance(entry, list) else [entry])]
    return [each.detection() for each in objects]


def detections_of_tensors(tensors: Mapping[str, NDArray[Any]]) -> list[Detection]:
    """One picture's objects in the tensors of a V2 answer.

    Raises:
        InferenceInputError: A tensor is absent, of another shape, or not finite.
    """
    try:
        boxes, circles, scores = tensors["boxes"], tensors["circles"], tensors["scores"]
        rows = np.concatenate([boxes, circles, scores[:, None]], axis=1).astype(np.float64)  # (M, 8)
    except (KeyError, ValueError, IndexError) as error:
        raise InferenceInputError(f"the tensors do not fit: {error!r}") from error
    if rows.shape[1] != 8 or not np.isfinite(rows).all():
        raise InferenceInputError(f"the tensors are not finite or have {rows.shape[1]} columns instead of 8")
    return [Detection(Circle(*row[4:7]), BBox(*row[:4]), row[7]) for row in rows.tolist()]


def clean_name(text: str) -> str:
    """A label or version as databases take it: without NUL, and not too long."""
    return text.replace("\0", "")[:_MAX_NAME_LENGTH]


def inside(detections: Sequence[Detection], width: int, height: int, min_score: float) -> tuple[Detection, ...]:
    """Those that keep what a detector promises: of some size, inside the picture, best first."""
    clipped = [
        Detection(each.circle, each.bbox.clip(width, height), each.score, clean_name(each.label))
        for each in detections
        if each.circle.radius > 0 and min_score <= each.score <= 1
    ]
    kept = [each for each in clipped if each.bbox.width > 0 and each.bbox.height > 0]
    return tuple(sorted(kept, key=lambda each: -each.score))


class _Point(BaseModel):
    x: FiniteFloat
    y: FiniteFloat


class _Corners(BaseModel):
    xmin: FiniteFloat
    ymin: FiniteFloat
    xmax: FiniteFloat
    ymax: FiniteFloat


_Radius = Annotated[FiniteFloat, Field(gt=0)]


class _Object(BaseModel):
    """An object as our V1 answers have it."""

    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    centroid: _Point
    radius: _Radius
    score: Score
    label: str = "circle"

    def detection(self) -> Detection:
        return Detection(
            Circle(self.centroid.x, self.centroid.y, self.radius), BBox(*self.bbox), self.score, self.label
        )


class _TemplateObject(BaseModel):
    """An object as the service has it that this one replaces."""

    bounding_box: _Corners
    centroid: _Point
    radius: _Radius = Field(validation_alias=AliasPath("radius", "radius"))
    score: Score
    label: str = "circle"

    def detection(self) -> Detection:
        box = self.bounding_box
        bbox = BBox(box.xmin, box.ymin, box.xmax, box.ymax)
        return Detection(Circle(self.centroid.x, self.centroid.y, self.radius), bbox, self.score, self.label)


class _Predictions(BaseModel):
    # The first error ends it: pydantic would make some for every object, of some hundred times its size.
    predictions: Annotated[
        list[Annotated[list[_Object], Field(fail_fast=True)] | _Object | _TemplateObject], Field(fail_fast=True)
    ]
