"""RemoteDetector: the way to a detector behind a KServe endpoint, ours or somebody else's."""

import asyncio
import json
import logging
import socket
from typing import Literal, NoReturn
from urllib.parse import urlsplit

import httpx2
import stamina

from circles.detection import Detection, DetectorInfo, ImageDetections
from circles.errors import DetectionFailedError, DetectorUnavailableError, InferenceInputError
from circles.imaging import decode_image, read_header
from circles.settings import Settings
from deployments.async_detectors import DetectorState
from deployments.inference import v1, v2_rest
from deployments.inference.requests import INPUT_NAME, TENSORS
from deployments.remote_answers import clean_name, detections_of_tensors, detections_of_v1, inside
from deployments.threads import in_thread

logger = logging.getLogger("ray.serve")

_TRIES = 3
_CONNECT_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 2.0
_LONGEST_PAUSE_S = 1.0  # between two tries; whoever wants a longer one finds the picture pending
_MAX_ANSWER_BYTES = 16 * 2**20  # a thousand objects are some 200 kB
_DECODED_AT_ONCE = 2  # decoded pictures are large
# Refusals that may speak of the picture. All others speak of the endpoint, or of what is in front of it.
_PICTURE_STATUSES = frozenset({400, 413, 422, 500})
# Refusals that say that another protocol is spoken there now.
_PROTOCOL_STATUSES = frozenset({404, 405, 415, 501})

_Protocol = Literal["V2 binary", "V1"]
_Found = tuple[list[Detection], str]  # and the version of the model


class _RefusedError(httpx2.HTTPStatusError):
    """An answer that is none; the message has its status and how it begins."""

    def __init__(self, content: bytes, response: httpx2.Response) -> None:
        message = f"{response.status_code}: {content[:200].decode(errors='replace')}"
        super().__init__(message, request=response.request, response=response)
        self._content = content

    @property
    def is_protocols(self) -> bool:
        """Whether it is an error as servers of these protocols tell it."""
        try:
            answered = json.loads(self._content)
        except (ValueError, RecursionError):
            return False
        return isinstance(answered, dict) and "error" in answered


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
        self.versions: list[str] = []
        self._protocol: _Protocol | None = None
        self._negotiating = asyncio.Lock()
        self._decoding_turn = asyncio.Semaphore(_DECODED_AT_ONCE)
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(settings.model_server_timeout_s, connect=_CONNECT_TIMEOUT_S),
            # As many as there may be uploads in work: nobody waits for a connection.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=settings.max_in_flight),
            trust_env=False,
        )

    async def detect(self, image_bytes: bytes) -> ImageDetections:
        settings = self._settings
        header = await in_thread(read_header, image_bytes, settings.max_image_pixels)
        try:
            async with asyncio.timeout(settings.model_server_timeout_s):
                detections, version = await self._ask(image_bytes)
        except TimeoutError as error:
            raise self._unavailable(f"did not answer within {settings.model_server_timeout_s:g} s") from error
        except httpx2.HTTPStatusError as error:
            await self._refused(error, image_bytes)
        except httpx2.HTTPError as error:
            raise self._unavailable(f"did not answer: {type(error).__name__}") from error
        except InferenceInputError as error:
            raise self._unavailable(f"answered something else than detections: {error.detail}") from error
        return ImageDetections(
            header.width,
            header.height,
            DetectorInfo(settings.model_name, clean_name(version)),
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
                ask = self._ask_v2 if await self._known_protocol() == "V2 binary" else self._ask_v1
                try:
                    return await ask(image_bytes)
                except httpx2.HTTPError as error:
                    status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else None
                    if status is None or status in _PROTOCOL_STATUSES:
                        # Whoever answers next may be another version of the server.
                        self._protocol = None
                    raise
        raise AssertionError("the last try either returns or raises")

    async def _known_protocol(self) -> _Protocol:
        async with self._negotiating:
            if self._protocol is None:
                self._protocol = await self._negotiate()
                logger.info("the model server at %s is spoken to in %s", self._url, self._protocol)
            return self._protocol

    async def _negotiate(self) -> _Protocol:
        """V2 where the server reads raw bytes and the model has our tensors."""
        answers = [await self._client.get(f"{self._url}/v2"), await self._client.get(self._model_url.format(version=2))]
        for answer in answers:
            if _is_passing(answer.status_code):
                answer.raise_for_status()
        try:
            server, model = (answer.json() for answer in answers)
            has_binary = v2_rest.BINARY_EXTENSION in server["extensions"]
            inputs, outputs = ({tensor["name"] for tensor in model[key]} for key in ("inputs", "outputs"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return "V1"
        return "V2 binary" if has_binary and inputs == {INPUT_NAME} and outputs >= {*TENSORS} else "V1"

    async def _ask_v2(self, image_bytes: bytes) -> _Found:
        parameters = {"min_score": self._settings.store_min_score}
        body, length = await in_thread(v2_rest.write_request, [image_bytes], parameters)
        headers = {"Content-Type": v2_rest.BINARY_MEDIA_TYPE, v2_rest.HEADER_LENGTH: str(length)}
        content, answered = await self._post(f"{self._model_url.format(version=2)}/infer", body, headers)
        tensors, version = v2_rest.read_response(content, answered.get(v2_rest.HEADER_LENGTH))
        self.versions = [clean_name(version)]
        return detections_of_tensors(tensors), version

    async def _ask_v1(self, image_bytes: bytes) -> _Found:
        body = await in_thread(v1.write_request, [image_bytes], {"min_score": self._settings.store_min_score})
        headers = {"Content-Type": "application/json"}
        content, _ = await self._post(f"{self._model_url.format(version=1)}:predict", body, headers)
        return detections_of_v1(content), "unknown"

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, httpx2.Headers]:
        """The body of an answer that is neither a refusal nor of unreasonable size, and its headers."""
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            content = b""
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MAX_ANSWER_BYTES:
                    raise InferenceInputError(f"more than {_MAX_ANSWER_BYTES} bytes")
        if not response.is_success:
            raise _RefusedError(content, response)
        return content, response.headers

    async def _refused(self, error: httpx2.HTTPStatusError, image_bytes: bytes) -> NoReturn:
        """Raises what it means: the endpoint is away, the picture is broken, or the detector stumbled over it."""
        status = error.response.status_code
        # A proxy, too, may answer 500 where the endpoint is away.
        is_detectors = status != 500 or (isinstance(error, _RefusedError) and error.is_protocols)
        if status not in _PICTURE_STATUSES or not is_detectors:
            raise self._unavailable(f"refused with {error}") from error
        # An endpoint has no common word for a broken picture: whether it is one shows here.
        if status != 413:
            async with self._decoding_turn:
                await in_thread(decode_image, image_bytes, self._settings.max_image_pixels)
        raise DetectionFailedError(f"the model server refused this picture with {error}") from error

    def _unavailable(self, what: str) -> DetectorUnavailableError:
        return DetectorUnavailableError(f"the model server at {self._url} {what}")


def _backoff(error: Exception) -> bool | float:
    """Whether another try may help, or after how many seconds the server wants it."""
    if isinstance(error, httpx2.HTTPStatusError):
        retry_after = error.response.headers.get("Retry-After", "")
        if retry_after.isdecimal():
            return float(retry_after) if float(retry_after) <= _LONGEST_PAUSE_S else False
        return _is_passing(error.response.status_code)
    return isinstance(error, httpx2.TransportError)


def _is_passing(status: int) -> bool:
    """Whether the same request may be answered a little later."""
    return status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR
