"""ServedModel: what answers requests of the inference protocols, and what stands before every answer."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from circles.detection import ImageDetections
from circles.errors import (
    DetectionFailedError,
    DetectorUnavailableError,
    ImageError,
    InferenceInputError,
    NotFoundError,
)
from circles.settings import Settings
from deployments.admission import Admission
from deployments.async_detectors import AsyncDetector, detect_in_time
from deployments.inference.requests import InferenceRequest
from deployments.quoting import shortened

AT_ONCE = 8
"""Most pictures of one request that are detected in at once."""


class ServedModel(Protocol):
    """The detector as inference protocols know it."""

    @property
    def settings(self) -> Settings:
        """Its name at the protocols, and the limits of requests."""

    @property
    def versions(self) -> list[str]:
        """The one version that answers, or none while it is not known."""

    @property
    def extensions(self) -> list[str]:
        """Of the Open Inference Protocol, those that the server offers."""

    @property
    def min_score(self) -> float:
        """Score from which objects are answered to requests that name none."""

    @property
    def admission(self) -> Admission:
        """A request holds one of its slots from before its pictures are read until they are answered."""

    @property
    def is_loaded(self) -> bool:
        """Whether requests are taken."""

    async def is_ready(self) -> bool:
        """Whether a request would be answered now; asks whoever would answer it."""

    async def infer(self, request: InferenceRequest) -> list[ImageDetections]:
        """What is in each picture; the caller holds a slot.

        Raises:
            InferenceInputError: A picture is at fault; the message names its index.
            DetectionFailedError: The detector stumbled over one.
            UnavailableError: Nobody can answer just now.
        """


def require_named(model: ServedModel, name: str, version: str = "") -> None:
    """
    Args:
        version: Empty when the request leaves it open.

    Raises:
        NotFoundError: The model has another name or version.
    """
    if name != model.settings.model_name:
        raise NotFoundError(f"there is no model '{shortened(name)}'; the one here is '{model.settings.model_name}'")
    if version and version not in model.versions:
        raise NotFoundError(
            f"model '{name}' has no version '{shortened(version)}'; there is {', '.join(model.versions) or 'none'}"
        )


def require_loaded(model: ServedModel) -> None:
    """What a request is refused for unread. That nobody can answer it just now, ``infer`` says.

    Raises:
        DetectorUnavailableError: Requests are not taken.
    """
    if not model.is_loaded:
        raise DetectorUnavailableError(f"model '{model.settings.model_name}' is not ready")


async def detect_all(
    detector: AsyncDetector, images: Sequence[bytes], admission: Admission, settings: Settings
) -> list[ImageDetections]:
    """What is in each picture; eight at once, or fewer where others are at work.

    Args:
        admission: That the caller holds a slot of; for each further picture at once, one more is taken.

    Raises:
        As ``ServedModel.infer``. The first error ends the work on the other pictures.
    """
    more_slots = admission.work_at_most(min(len(images), AT_ONCE) - 1)
    waiting = iter(enumerate(images))
    found: dict[int, ImageDetections] = {}

    async def lane() -> None:
        for index, image_bytes in waiting:
            try:
                found[index] = await detect_in_time(detector, image_bytes, settings.detection_timeout_s)
            except ImageError as error:
                raise InferenceInputError(f"instance {index}: {error.detail}") from error
            except DetectionFailedError as error:
                raise DetectionFailedError(f"instance {index}: {error.detail}") from error

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(1 + len(more_slots)):
                group.create_task(lane())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        for slot in more_slots:
            slot.release()
    return [found[index] for index in range(len(images))]
