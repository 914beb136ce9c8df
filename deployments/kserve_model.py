"""The detector the KServe way: ``python -m deployments.kserve_model`` serves it by KServe's protocols, without Ray."""

import asyncio
import logging
from typing import Annotated, Any

import kserve
import typer
import uvicorn
from pydantic import ValidationError

from circles.detection import ImageDetections
from circles.detectors.guarded import GuardedDetector
from circles.errors import DetectorUnavailableError, WeightsError
from circles.settings import Settings, why_refused
from deployments.admission import Admission
from deployments.async_detectors import InProcessDetector
from deployments.inference.requests import InferenceRequest
from deployments.inference.served_model import detect_all
from deployments.inference.v2_rest import BINARY_EXTENSION
from deployments.model_server import create_model_server
from deployments.threads import in_thread

logger = logging.getLogger(__name__)

REPOSITORY_EXTENSION = "model_repository"


class CircleModel(kserve.Model):  # type: ignore[misc]  # the package is not typed
    """One detector in this process. What requests ask at once is detected in batches, off the event loop.

    KServe's base class measures every call (``request_predict_seconds`` and its like at ``/metrics``).
    """

    def __init__(self, settings: Settings) -> None:
        """Does not load it."""
        super().__init__(settings.model_name)
        self.settings = settings
        self.versions: list[str] = []
        self.extensions = [BINARY_EXTENSION, REPOSITORY_EXTENSION]
        self.min_score = settings.default_min_score
        self.admission = Admission(settings.max_in_flight, settings.max_in_flight_bytes)
        self._loading = asyncio.Lock()
        self._detector: InProcessDetector | None = None

    def load(self) -> bool:
        """
        Raises:
            WeightsError: The weights are absent or damaged.
        """
        detector = GuardedDetector(self.settings)
        self.versions = [detector.info.version]
        self._detector = InProcessDetector(detector, self.settings.largest_batch)
        self.ready = True
        return True

    async def load_model(self) -> None:
        async with self._loading:
            if self.ready:
                return
            await in_thread(self.load)

    async def unload_model(self) -> None:
        async with self._loading:
            self.ready = False
            detector, self._detector = self._detector, None
            if detector is not None:
                await detector.close()

    @property
    def is_loaded(self) -> bool:
        return self._detector is not None

    async def is_ready(self) -> bool:
        return bool(await self.healthy())

    async def predict(
        self, payload: InferenceRequest, _headers: Any = None, _response_headers: Any = None
    ) -> list[ImageDetections]:
        """As ``ServedModel.infer``, which calls it by way of KServe's base class."""
        if self._detector is None:
            raise DetectorUnavailableError(f"model '{self.name}' is not loaded")
        return await detect_all(self._detector, payload.images, self.admission, self.settings)

    async def infer(self, request: InferenceRequest) -> list[ImageDetections]:
        found, _ = await self(request)
        result: list[ImageDetections] = found
        return result


def main(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http_port", help="Port of REST, /docs and /metrics.")] = 9090,
    grpc_port: Annotated[int, typer.Option("--grpc_port", help="Port of gRPC.")] = 9091,
    model_name: Annotated[str | None, typer.Option("--model_name", help="Instead of MODEL_NAME.")] = None,
) -> None:
    """Serve the detector by the V1 and V2 inference protocols.

    Everything else is told by the environment variables that the service reads, too; but for API_KEYS and
    REQUIRE_API_KEYS: who may ask is the business of the gateway in front.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        settings = Settings() if model_name is None else Settings(model_name=model_name)
    except ValidationError as error:
        raise SystemExit(f"error: {why_refused(error)}") from error
    if settings.api_key_list or settings.require_api_keys:
        logger.warning("API_KEYS is not heeded here: anybody who reaches this server may use it, and unload its model")
    model = CircleModel(settings)
    try:
        model.load()
    except WeightsError as error:
        raise SystemExit(f"error: {error.detail}") from error
    uvicorn.run(
        create_model_server(model, f"{host}:{grpc_port}"),
        host=host,
        port=http_port,
        timeout_graceful_shutdown=int(settings.drain_timeout_s),
    )


if __name__ == "__main__":
    typer.run(main)
