"""Who answers when the ingress wants a picture looked at: the detector replicas, or this very process."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import grpc
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatusOverview

from circles.detection import ImageDetections
from circles.detectors.encoded import DetectionOutcome, EncodedDetector
from circles.errors import DetectorUnavailableError

logger = logging.getLogger("ray.serve")

DetectorState = Literal["ok", "asleep"]


class AsyncDetector(Protocol):
    """Detects in encoded pictures, one a call, many calls at once."""

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        """What is in the picture.

        Raises:
            ImageError: The picture is at fault.
            DetectionFailedError: The detector stumbled over this picture.
            DetectorUnavailableError: Nobody can answer just now.
        """

    def state(self) -> DetectorState:
        """Whether somebody could answer; blocks, and wakes nobody.

        Raises:
            DetectorUnavailableError: Nobody could.
        """


class InProcessDetector:
    """Detects in a thread of this process."""

    def __init__(self, detector: EncodedDetector) -> None:
        self._detector = detector
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detect")

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        loop = asyncio.get_running_loop()
        (outcome,) = await loop.run_in_executor(self._executor, self._detector.detect, [image_bytes])
        return _found(outcome)

    def state(self) -> DetectorState:
        return "ok"


class ReplicaDetector:
    """Detects through the replicas of the detector deployment.

    A picture whose replica dies under it is given to another one once: detection changes nothing, so asking again is
    safe.
    """

    def __init__(self, detector_handle: DeploymentHandle[Any], deployment_name: str) -> None:
        self._handle = detector_handle
        self._deployment_name = deployment_name
        self._app_name = serve.get_replica_context().app_name

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        try:
            outcome = await self._ask(image_bytes)
        except DetectorUnavailableError as error:
            logger.warning("detection is tried once more: %s", error.detail)
            outcome = await self._ask(image_bytes)
        return _found(outcome)

    async def _ask(self, image_bytes: bytes) -> DetectionOutcome:
        try:
            outcome: DetectionOutcome = await self._handle.detect.remote(image_bytes)
        # RayError: the replica died or cannot be reached; RayServeException: no replica, or their queue is full;
        # RpcError: the connection to a replica broke on the way.
        except (RayError, RayServeException, grpc.RpcError) as error:
            raise DetectorUnavailableError(f"the detector did not answer: {type(error).__name__}") from error
        return outcome

    def state(self) -> DetectorState:
        try:
            application = serve.status().applications.get(self._app_name)
        except (RayError, RayServeException) as error:
            raise DetectorUnavailableError(f"Serve's controller does not answer: {type(error).__name__}") from error
        deployment = application.deployments.get(self._deployment_name) if application else None
        if deployment is None:
            raise DetectorUnavailableError("the detector is not deployed")
        if _running_replicas(deployment) > 0:
            return "ok"
        if _is_asleep(deployment):
            return "asleep"
        raise DetectorUnavailableError(f"no detector replica is running: {deployment.status}")


def _found(outcome: DetectionOutcome) -> ImageDetections:
    if isinstance(outcome, ImageDetections):
        return outcome
    raise outcome


def _running_replicas(deployment: DeploymentStatusOverview) -> int:
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")


def _is_asleep(deployment: DeploymentStatusOverview) -> bool:
    return deployment.status == "HEALTHY" and not any(deployment.replica_states.values())
