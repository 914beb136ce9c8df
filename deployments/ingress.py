"""IngressDeployment: the replica that speaks HTTP, and owns the files and the database."""

from typing import Any

import pydantic
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from circles.detectors import load_detector
from circles.detectors.encoded import EncodedDetector
from circles.settings import Score, Settings
from deployments.api import create_api
from deployments.async_detectors import AsyncDetector, InProcessDetector, ReplicaDetector
from deployments.services import open_services


class UserConfig(pydantic.BaseModel, extra="forbid"):
    """What `serve deploy` may change in a running replica, by the deployment's ``user_config``."""

    min_score: Score | None = None


class IngressDeployment:
    """Takes uploads, keeps them, has them looked at, answers. Its options are the builder's business."""

    def __init__(self, settings: Settings, detector_handle: DeploymentHandle[Any] | None) -> None:
        """Opens the replica's resources.

        Args:
            settings: Read once, by the builder.
            detector_handle: The way to the detector replicas; None to answer fixed detections from this process.

        Raises:
            DataFolderLockedError: Another service uses the data folder.
        """
        app_name = serve.get_replica_context().app_name
        self._services = open_services(
            settings,
            _detector(settings, detector_handle),
            holder=f"the ingress replica of application '{app_name}'",
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for the application once the replica is constructed."""
        return create_api(self._services, is_behind_serve=True)

    def check_health(self) -> None:
        """Asked by Serve every few seconds; a replica that raises is replaced."""
        self._services.check_health()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes over a changed ``user_config`` without a restart; what it leaves unset stays as in the settings."""
        min_score = UserConfig.model_validate(user_config).min_score
        self._services.min_score = self._services.settings.default_min_score if min_score is None else min_score


def _detector(settings: Settings, detector_handle: DeploymentHandle[Any] | None) -> AsyncDetector:
    if detector_handle is not None:
        return ReplicaDetector(detector_handle, deployment_name="Detector")
    dummy = load_detector("dummy")
    return InProcessDetector(EncodedDetector(dummy, settings.max_image_pixels, settings.store_min_score))
