"""ReplicaDetector: the way to the replicas of the detector deployment."""

import logging
import time
from typing import Any

import grpc
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatusOverview

from circles.detection import ImageDetections
from circles.detectors.encoded import DetectionOutcome
from circles.errors import DetectorUnavailableError
from deployments.async_detectors import DetectorState, found_in
from deployments.timings import add_stages

logger = logging.getLogger("ray.serve")

# Of a deployment without a running replica that is as it should be: it sleeps, wakes up, or falls asleep.
_ASLEEP_STATUSES = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})


class ReplicaDetector:
    """Detects through the replicas of the detector deployment.

    A picture whose replica dies under it is given to another one once: detection changes nothing, so asking again is
    safe.
    """

    def __init__(
        self, detector_handle: DeploymentHandle[Any], deployment_name: str, version: str, may_sleep: bool
    ) -> None:
        """
        Args:
            version: Of the detector that the replicas load.
            may_sleep: Whether there may be no replica while nobody asks.
        """
        self.versions = [version]
        # Looked up once, here: the first look asks Serve's controller, and waits for it on the event loop. A replica
        # that did so while the head node is being replaced would answer nobody.
        self._detect = detector_handle.detect
        self._deployment_name = deployment_name
        self._may_sleep = may_sleep
        self._app_name = serve.get_replica_context().app_name

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        try:
            outcome = await self._ask(image_bytes)
        except DetectorUnavailableError as error:
            logger.warning("detection is tried once more: %s", error.detail)
            outcome = await self._ask(image_bytes)
        return found_in(outcome)

    async def _ask(self, image_bytes: bytes) -> DetectionOutcome:
        try:
            began = time.perf_counter()
            outcome: DetectionOutcome = await self._detect.remote(image_bytes)
            seconds = outcome.seconds if isinstance(outcome, ImageDetections) else {}
            add_stages(seconds, "hop", time.perf_counter() - began)
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
        if self._may_sleep and deployment.status in _ASLEEP_STATUSES:
            return "asleep"
        raise DetectorUnavailableError(f"no detector replica is running: {deployment.status}")

    async def close(self) -> None:
        """Nothing is held: the replicas are Serve's."""


def _running_replicas(deployment: DeploymentStatusOverview) -> int:
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")
