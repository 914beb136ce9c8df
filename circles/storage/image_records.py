"""Images and objects as they are kept, and how they become rows and are made of rows."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row

from circles.detection import Detection, DetectorInfo
from circles.geometry import BBox, Circle

Status = Literal["pending", "done", "failed"]

_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_OBJECT_ID = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """A stored object: a detection with an id of its own."""

    object_id: str
    image_id: str
    detection: Detection


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A stored image. ``detector`` is None until one answered; ``objects`` come best score first."""

    image_id: str
    storage_key: str
    filename: str | None
    media_type: str
    width: int
    height: int
    size_bytes: int
    created_at: datetime
    status: Status
    error: str | None
    detector: DetectorInfo | None
    objects: tuple[ObjectRecord, ...] = ()
    lease_until: datetime | None = field(default=None, compare=False)
    """Of a claimed image: until when it is the claimer's."""


@dataclass(frozen=True, slots=True)
class ImagePage:
    """Some images, newest first, without their objects but with how many there are; and where the next page begins."""

    items: list[tuple[ImageRecord, int]]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many images wait for detection, and since when the oldest one does; None without any."""

    count: int
    oldest_at: datetime | None


def object_records(image_id: str, detections: Sequence[Detection]) -> tuple[ObjectRecord, ...]:
    """The detections as objects of this image, each with a new id."""
    return tuple(ObjectRecord(str(uuid.uuid4()), image_id, detection) for detection in detections)


def is_image_id(text: object) -> bool:
    """Whether an image may have this id; whatever else clients ask for never reaches a database."""
    return isinstance(text, str) and _IMAGE_ID.fullmatch(text) is not None


def is_object_id(text: str) -> bool:
    """Whether an object may have this id."""
    return _OBJECT_ID.fullmatch(text) is not None


def object_rows(objects: Sequence[ObjectRecord]) -> list[dict[str, object]]:
    """The values of the objects' rows; objects come best score first."""
    return [
        {
            "object_id": stored.object_id,
            "image_id": stored.image_id,
            "rank": rank,
            "label": stored.detection.label,
            "x_min": stored.detection.bbox.x_min,
            "y_min": stored.detection.bbox.y_min,
            "x_max": stored.detection.bbox.x_max,
            "y_max": stored.detection.bbox.y_max,
            "center_x": stored.detection.circle.center_x,
            "center_y": stored.detection.circle.center_y,
            "radius": stored.detection.circle.radius,
            "score": stored.detection.score,
        }
        for rank, stored in enumerate(objects)
    ]


def image_row(record: ImageRecord) -> dict[str, object]:
    """The values of the image's row."""
    return {
        "image_id": record.image_id,
        "storage_key": record.storage_key,
        "filename": record.filename,
        "media_type": record.media_type,
        "width": record.width,
        "height": record.height,
        "size_bytes": record.size_bytes,
        "created_at": record.created_at,
        "status": record.status,
        "error": record.error,
        "detector_name": record.detector.name if record.detector else None,
        "detector_version": record.detector.version if record.detector else None,
    }


def image_record(row: Row[Any], objects: tuple[ObjectRecord, ...] = ()) -> ImageRecord:
    """The image of a row."""
    return ImageRecord(
        image_id=row.image_id,
        storage_key=row.storage_key,
        filename=row.filename,
        media_type=row.media_type,
        width=row.width,
        height=row.height,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        status=row.status,
        error=row.error,
        detector=DetectorInfo(row.detector_name, row.detector_version) if row.detector_name else None,
        objects=objects,
    )


def object_record(row: Row[Any]) -> ObjectRecord:
    """The object of a row."""
    circle = Circle(row.center_x, row.center_y, row.radius)
    bbox = BBox(row.x_min, row.y_min, row.x_max, row.y_max)
    return ObjectRecord(row.object_id, row.image_id, Detection(circle, bbox, row.score, row.label))
