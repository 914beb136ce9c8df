"""Request and response bodies; nothing else crosses HTTP."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from circles.storage.image_records import ImageRecord, ObjectRecord, Status


class Centroid(BaseModel):
    """A point, px."""

    x: float
    y: float


class ObjectBody(BaseModel):
    """One found object. Coordinates in px: origin at the image's top-left corner, x right, y down."""

    object_id: str
    label: str
    bbox: tuple[float, float, float, float] = Field(description="x_min, y_min, x_max, y_max; inside the image")
    centroid: Centroid
    radius: float = Field(gt=0)
    score: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, stored: ObjectRecord) -> Self:
        detection = stored.detection
        return cls(
            object_id=stored.object_id,
            label=detection.label,
            bbox=detection.bbox.as_tuple(),
            centroid=Centroid(x=detection.circle.center_x, y=detection.circle.center_y),
            radius=detection.circle.radius,
            score=detection.score,
        )


class ImageObjectBody(ObjectBody):
    """One found object with the image it is in."""

    image_id: str

    @classmethod
    def of(cls, stored: ObjectRecord) -> Self:
        return cls(image_id=stored.image_id, **ObjectBody.of(stored).model_dump())


class DetectorBody(BaseModel):
    """Which detector answered."""

    name: str
    version: str


class DetectionSummary(BaseModel):
    """What was found, in numbers."""

    detector: DetectorBody
    min_score: float = Field(description="the threshold of this answer")
    count: int = Field(description="number of objects scoring at least min_score")


class DetectionBody(DetectionSummary):
    """What was found."""

    detections: list[ObjectBody] = Field(description="best score first")


class _ImageFields(BaseModel):
    image_id: str = Field(description="SHA-256 of the uploaded bytes, 64 lower-case hex digits")
    filename: str | None = Field(description="what the client called it")
    media_type: str = Field(description="what the bytes are, not what the client claimed")
    width: int = Field(description="px, upright")
    height: int = Field(description="px, upright")
    size_bytes: int
    created_at: datetime
    status: Status
    error: str | None = Field(description="why detection failed")


class ImageBody(_ImageFields):
    """One uploaded image and what was found in it."""

    detection: DetectionBody | None = Field(description="null until done")

    @classmethod
    def of(cls, record: ImageRecord, min_score: float) -> Self:
        detection = None
        if record.detector is not None and record.status == "done":
            objects = objects_above(record, min_score)
            detection = DetectionBody(
                detector=DetectorBody(name=record.detector.name, version=record.detector.version),
                min_score=min_score,
                count=len(objects),
                detections=objects,
            )
        return cls(**_image_fields(record), detection=detection)


class ImageListItem(_ImageFields):
    """One uploaded image without its objects."""

    detection: DetectionSummary | None = Field(description="null until done")

    @classmethod
    def of(cls, record: ImageRecord, min_score: float, count: int) -> Self:
        detection = None
        if record.detector is not None and record.status == "done":
            detection = DetectionSummary(
                detector=DetectorBody(name=record.detector.name, version=record.detector.version),
                min_score=min_score,
                count=count,
            )
        return cls(**_image_fields(record), detection=detection)


class ImageListBody(BaseModel):
    """A page of images, newest first."""

    items: list[ImageListItem]
    next_cursor: str | None = Field(description="give it as cursor for the next page; null on the last one")


class ObjectListBody(BaseModel):
    """The objects of one image."""

    image_id: str
    status: Status
    count: int
    objects: list[ObjectBody] = Field(description="best score first")


class ProblemBody(BaseModel):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str


class BatchResult(BaseModel):
    """What became of one file of a batch: its image, or its problem."""

    filename: str | None
    status: int = Field(description="what an upload of this file alone would have answered")
    image: ImageBody | None = None
    problem: ProblemBody | None = None


class BatchBody(BaseModel):
    """What became of a batch, in the order of its files."""

    results: list[BatchResult]


class HealthBody(BaseModel):
    """The service is alive."""

    status: Literal["ok"] = "ok"
    version: str
    mode: str


class ReadyBody(BaseModel):
    """Whether the service can do its work: each part "ok" (a detector also "asleep"), or what is wrong with it."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


def objects_above(record: ImageRecord, min_score: float) -> list[ObjectBody]:
    """The image's objects scoring at least ``min_score``, best first."""
    return [ObjectBody.of(stored) for stored in record.objects if stored.detection.score >= min_score]


def _image_fields(record: ImageRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _ImageFields.model_fields}
