"""ApplicationModel: the application's detector as inference protocols know it; nothing of theirs is stored."""

from circles.detection import ImageDetections
from circles.settings import Settings
from deployments.inference.requests import InferenceRequest
from deployments.inference.served_model import detect_all
from deployments.inference.v2_rest import BINARY_EXTENSION
from deployments.readiness import Readiness
from deployments.services import Services


class ApplicationModel:
    """Answers through whatever detects for uploads, within the same limits."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.settings: Settings = services.settings
        self.extensions = [BINARY_EXTENSION]
        self.admission = services.admission
        # Of its own: what stores nothing does not wait for the database and the disk.
        self._readiness = Readiness({"detector": services.detector.state})

    @property
    def versions(self) -> list[str]:
        return self._services.detector.versions

    @property
    def min_score(self) -> float:
        return self._services.min_score

    @property
    def is_loaded(self) -> bool:
        return True

    async def is_ready(self) -> bool:
        is_ready, _ = await self._readiness.states()
        return is_ready

    async def infer(self, request: InferenceRequest) -> list[ImageDetections]:
        return await detect_all(self._services.detector, request.images, self.admission, self.settings)
