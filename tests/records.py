"""Images for tests of files and rows."""

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.geometry import Circle
from circles.imaging import ImageHeader
from circles.storage.image_records import ImageRecord
from circles.storage.records import RecordBook, image_id_of

HEADER = ImageHeader("image/png", 100, 80)


def found(*scores: float) -> ImageDetections:
    """As many objects as scores."""
    circle = Circle(50, 40, 20)
    detections = tuple(Detection(circle, circle.bbox(), score) for score in scores)
    return ImageDetections(100, 80, DetectorInfo("fixed", "1"), detections)


def add(book: RecordBook, image_bytes: bytes, result: ImageDetections | None = None) -> tuple[ImageRecord, bool]:
    """Stages and commits these bytes."""
    image_id = image_id_of(image_bytes)
    key = book.stage(image_id, image_bytes, HEADER.media_type)
    return book.commit(image_id, key, HEADER, len(image_bytes), "x.png", result)
