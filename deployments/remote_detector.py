"""RemoteDetector: the way to a detector behind a KServe endpoint, ours or somebody else's."""

import asyncio
import logging
import socket
from typing import Literal, NoReturn
from urllib.parse import urlsplit

import anyio.to_thread
import httpx2
import stamina

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.errors import DetectionFailedError, DetectorUnavailableError, InferenceInputError
from circles.imaging import decode_image, read_header
from circles.settings import Settings
from deployments.async_detectors import DetectorState
from deployments.inference import v1, v2_rest
from deployments.inference.requests import INPUT_NAME, TENSORS
from deployments.remote_answers import detections_of_tensors, detections_of_v1, inside

logger = logging.getLogger("ray.serve")

_TRIES = 3
_CONNECT_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 2.0
# Refusals that say nothing about the picture, and pass.
_PASSING_STATUSES = frozenset({429, 502, 503, 504})
# Refusals that say that the endpoint, or what is in front of it, is not set up as the settings have it.
_SETUP_STATUSES = frozenset({401, 403, 404, 405, 407, 501})

_Protocol = Literal["V2 binary", "V1"]
_Found = tuple[list[Detection], str]  # and the version of the model


class RemoteDetector:
    """Detects through an endpoint that speaks the Open Inference Protocol with binary tensors, or else KServe's V1.

    Detection changes nothing at the endpoint, so a request that got no answer is sent again, a few times.
    """

    def __init__(self, settings: Settings) -> None:
        """
        Args:
            settings: With a ``model_server_url``.
        """
        assert settings.model_server_url is not None
        self._url = settings.model_server_url
        self._model_url = f"{self._url}/v{{version}}/models/{settings.model_name}"
        self._settings = settings
        self._protocol: _Protocol | None = None
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(settings.model_server_timeout_s, connect=_CONNECT_TIMEOUT_S),
            # As many as there may be uploads in work: nobody waits for a connection.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=settings.max_in_flight),
            trust_env=False,
        )

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        settings = self._settings
        header = await anyio.to_thread.run_sync(read_header, image_bytes, settings.max_image_pixels)
        try:
            async with asyncio.timeout(settings.model_server_timeout_s):
                detections, version = await self._ask(image_bytes)
        except TimeoutError as error:
            raise self._unavailable(f"did not answer within {settings.model_server_timeout_s:g} s") from error
        except httpx2.HTTPStatusError as error:
            await self._refused(error.response, image_bytes)
        except httpx2.HTTPError as error:
            raise self._unavailable(f"did not answer: {type(error).__name__}") from error
        except InferenceInputError as error:
            raise self._unavailable(f"answered something else than detections: {error.detail}") from error
        return ImageDetections(
            header.width,
            header.height,
            DetectorInfo(settings.model_name, version),
            inside(detections, header.width, header.height, settings.store_min_score),
        )

    def state(self) -> DetectorState:
        """Whether somebody accepts connections there: what a request would tell, it would also wake."""
        parts = urlsplit(self._url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((parts.hostname, port), timeout=_PROBE_TIMEOUT_S):
                return "ok"
        except OSError as error:
            raise self._unavailable(f"cannot be reached: {error}") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, image_bytes: bytes) -> _Found:
        """Raises what the last try raised."""
        async for attempt in stamina.retry_context(
            on=_backoff,
            attempts=_TRIES,
            timeout=self._settings.model_server_timeout_s,
            wait_initial=0.1,
            wait_jitter=0.3,
        ):
            with attempt:
                if self._protocol is None:
                    self._protocol = await self._negotiate()
                    logger.info("the model server at %s is spoken to in %s", self._url, self._protocol)
                ask = self._ask_v2 if self._protocol == "V2 binary" else self._ask_v1
                try:
                    return await ask(image_bytes)
                except httpx2.HTTPError:
                    # Whoever answers next may be another version of the server.
                    self._protocol = None
                    raise
        raise AssertionError("the last try either returns or raises")

    async def _negotiate(self) -> _Protocol:
        """V2 where the server reads raw bytes and the model has our tensors."""
        server = await self._client.get(f"{self._url}/v2")
        if server.status_code in _PASSING_STATUSES:
            server.raise_for_status()
        model = await self._client.get(self._model_url.format(version=2))
        try:
            extensions = server.json()["extensions"]
            inputs, outputs = ({tensor["name"] for tensor in model.json()[key]} for key in ("inputs", "outputs"))
        except (ValueError, KeyError, TypeError):
            return "V1"
        is_ours = inputs == {INPUT_NAME} and outputs >= {*TENSORS}
        return "V2 binary" if is_ours and v2_rest.BINARY_EXTENSION in extensions else "V1"

    async def _ask_v2(self, image_bytes: bytes) -> _Found:
        body, header_length = v2_rest.write_request([image_bytes], {"min_score": self._settings.store_min_score})
        response = await self._client.post(
            f"{self._model_url.format(version=2)}/infer",
            content=body,
            headers={"Content-Type": v2_rest.BINARY_MEDIA_TYPE, v2_rest.HEADER_LENGTH: str(header_length)},
        )
        response.raise_for_status()
        tensors, version = v2_rest.read_response(response.content, response.headers.get(v2_rest.HEADER_LENGTH))
        return detections_of_tensors(tensors), version

    async def _ask_v1(self, image_bytes: bytes) -> _Found:
        body = await anyio.to_thread.run_sync(
            v1.write_request, [image_bytes], {"min_score": self._settings.store_min_score}
        )
        response = await self._client.post(
            f"{self._model_url.format(version=1)}:predict", content=body, headers={"Content-Type": "application/json"}
        )
        response.raise_for_status()
        return detections_of_v1(response.content), "unknown"

    async def _refused(self, response: httpx2.Response, image_bytes: bytes) -> NoReturn:
        """Raises what it means: the endpoint is away, the picture is broken, or the detector stumbled over it."""
        status = response.status_code
        if status in _PASSING_STATUSES | _SETUP_STATUSES:
            raise self._unavailable(f"refused with {status}: {response.text[:200]}")
        # An endpoint has no common word for a broken picture: whether it is one shows here.
        await anyio.to_thread.run_sync(decode_image, image_bytes, self._settings.max_image_pixels)
        raise DetectionFailedError(f"the model server refused this picture with {status}: {response.text[:200]}")

    def _unavailable(self, what: str) -> DetectorUnavailableError:
        return DetectorUnavailableError(f"the model server at {self._url} {what}")


def _backoff(error: Exception) -> bool | float:
    """Whether another try may help, or after how many seconds the server wants it."""
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        retry_after = error.response.headers.get("Retry-After", "")
        if status in _PASSING_STATUSES and retry_after.isdecimal():
            return float(retry_after)
        return status in _PASSING_STATUSES or status >= 500
    return isinstance(error, httpx2.TransportError)
