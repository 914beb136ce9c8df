"""IngressDeployment: the replica that speaks HTTP, and owns the files and the database."""

from typing import Any

import pydantic
from fastapi import FastAPI
from google.protobuf.message import Message
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from circles.detectors import detector_info
from circles.detectors.encoded import open_detector
from circles.settings import Score, Settings
from deployments.api import create_api
from deployments.application_model import ApplicationModel
from deployments.async_detectors import AsyncDetector, InProcessDetector
from deployments.handover import LateApi, has_predecessor
from deployments.inference.v2_grpc import InferenceServicer
from deployments.remote_detector import RemoteDetector
from deployments.replica_detector import ReplicaDetector
from deployments.services import Services, open_services
from deployments.spare_worker import keep_spare_worker


class UserConfig(pydantic.BaseModel, extra="forbid"):
    """What `serve deploy` may change in a running replica, by the deployment's ``user_config``."""

    min_score: Score | None = None


class IngressDeployment:
    """Takes uploads, keeps them, has them looked at, answers. Its options are the builder's business."""

    def __init__(self, settings: Settings, detector_handle: DeploymentHandle[Any] | None) -> None:
        """Opens the replica's resources.

        Args:
            settings: Read once, by the builder; but secrets that it left out are those of this process's environment.
            detector_handle: The way to the detector replicas; None without any: an endpoint elsewhere detects, or
                fixed detections are answered from this process.

        Raises:
            DataFolderLockedError: Another service uses the data folder.
        """
        settings = settings.with_environment_secrets()
        holder = f"the ingress replica of application '{serve.get_replica_context().app_name}'"
        detector = _detector(settings, detector_handle)
        self._settings = settings
        self._min_score = settings.default_min_score
        self._services: Services | None = None
        self._late_api: LateApi | None = None
        if has_predecessor(settings):
            self._late_api = LateApi(lambda: open_services(settings, detector, holder), self._create_api)
        else:
            self._services = open_services(settings, detector, holder)
        keep_spare_worker()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve asks for the application once the replica is constructed."""
        if self._late_api is not None:
            return self._late_api
        assert self._services is not None
        return self._create_api(self._services)

    def _create_api(self, services: Services) -> FastAPI:
        self._services = services
        services.min_score = self._min_score
        self._grpc = InferenceServicer(ApplicationModel(services), services.access)
        return create_api(services, is_behind_serve=True)

    async def _answer_grpc(self, request: Message, grpc_context: RayServegRPCContext) -> Message:
        if self._late_api is not None:
            await self._late_api.services()
        return await self._grpc.answer(request, grpc_context)

    # Serve finds the methods of gRPC services by their names.
    ServerLive = ServerReady = ServerMetadata = _answer_grpc
    ModelReady = ModelMetadata = ModelInfer = _answer_grpc
    RepositoryModelLoad = RepositoryModelUnload = _answer_grpc

    def check_health(self) -> None:
        """Asked by Serve every few seconds; a replica that raises is replaced."""
        if self._late_api is not None:
            self._late_api.check_health()
        if self._services is not None:
            self._services.check_health()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes over a changed ``user_config`` without a restart; what it leaves unset stays as in the settings."""
        min_score = UserConfig.model_validate(user_config).min_score
        self._min_score = self._settings.default_min_score if min_score is None else min_score
        if self._services is not None:
            self._services.min_score = self._min_score


def _detector(settings: Settings, detector_handle: DeploymentHandle[Any] | None) -> AsyncDetector:
    if detector_handle is not None:
        may_sleep = settings.detector_min_replicas == 0
        return ReplicaDetector(detector_handle, "Detector", detector_info(settings.detector).version, may_sleep)
    if settings.mode == "real":
        return RemoteDetector(settings)
    return InProcessDetector(open_detector(settings))
