"""The Open Inference Protocol ("V2") over gRPC, for Ray Serve's gRPC proxy and for the model server."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from circles.detection import ImageDetections
from circles.errors import CirclesError, InferenceInputError, NotFoundError, OverloadedError, UnavailableError
from deployments.access import Access, Refusal
from deployments.inference import open_inference_pb2 as messages
from deployments.inference.requests import TENSORS, InferenceRequest, make_request, output_tensors
from deployments.inference.served_model import ServedModel, require_loaded, require_named
from deployments.inference.v2_rest import (
    check_inputs,
    check_outputs,
    check_tensor,
    model_metadata,
    server_metadata,
    split_elements,
)
from deployments.threads import in_thread

logger = logging.getLogger("ray.serve")

SERVICE_NAME = "inference.GRPCInferenceService"
"""The protocol's, whatever the messages' package is called here."""

_REQUESTS: dict[str, type[Message]] = {
    "ServerLive": messages.ServerLiveRequest,
    "ServerReady": messages.ServerReadyRequest,
    "ServerMetadata": messages.ServerMetadataRequest,
    "ModelReady": messages.ModelReadyRequest,
    "ModelMetadata": messages.ModelMetadataRequest,
    "ModelInfer": messages.ModelInferRequest,
    "RepositoryModelLoad": messages.RepositoryModelLoadRequest,
    "RepositoryModelUnload": messages.RepositoryModelUnloadRequest,
}

_CODES: dict[type[CirclesError], grpc.StatusCode] = {
    InferenceInputError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    CirclesError: grpc.StatusCode.INTERNAL,
}


class Repository(Protocol):
    """Loads and unloads the served model, where clients may ask for that."""

    async def load_model(self) -> None:
        """Loads it, or makes sure that it is loaded; raises CirclesError when it cannot be."""

    async def unload_model(self) -> None:
        """Unloads it; requests are refused until it is loaded again."""


class Context(Protocol):
    """What Ray Serve's context of a call and grpcio's have in common."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """What the client sent beside the request."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status of the answer."""

    def set_details(self, details: str) -> None:
        """What the status means here."""


class InferenceServicer:
    """Answers calls for one model. Their kind follows from the type of the request."""

    def __init__(self, model: ServedModel, access: Access, repository: Repository | None = None) -> None:
        """
        Args:
            repository: Without one, loading and unloading are not implemented.
        """
        self._model = model
        self._access = access
        self._answers: dict[type[Message], Callable[[Any], Awaitable[Message]]] = {
            messages.ServerLiveRequest: self._server_live,
            messages.ServerReadyRequest: self._server_ready,
            messages.ServerMetadataRequest: self._server_metadata,
            messages.ModelReadyRequest: self._model_ready,
            messages.ModelMetadataRequest: self._model_metadata,
            messages.ModelInferRequest: self._model_infer,
        }
        if repository is not None:
            self._answers[messages.RepositoryModelLoadRequest] = partial(self._load, repository)
            self._answers[messages.RepositoryModelUnloadRequest] = partial(self._unload, repository)

    async def answer(self, request: Message, grpc_context: Context) -> Message:
        """The answer; a failure is told by the context's status, and the message is empty."""
        refusal = await self._refusal(grpc_context)
        if refusal is not None:
            is_too_many = refusal.retry_after_s > 0
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if is_too_many else grpc.StatusCode.UNAUTHENTICATED
            return _failed(grpc_context, code, refusal.detail)
        answer = self._answers.get(type(request))
        if answer is None:
            reason = "the replicas of this application load the model themselves"
            return _failed(grpc_context, grpc.StatusCode.UNIMPLEMENTED, reason)
        try:
            return await answer(request)
        except CirclesError as error:
            code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
            logger.info("%s refused with %s: %s", type(request).__name__, code.name, error.detail)
            return _failed(grpc_context, code, error.detail)
        # The net below: Serve would send the traceback to the client.
        except Exception:
            logger.exception("%s failed", type(request).__name__)
            return _failed(grpc_context, grpc.StatusCode.INTERNAL, "the service made a mistake; its log tells more")

    async def _refusal(self, grpc_context: Context) -> Refusal | None:
        sent: dict[str, list[str]] = {}
        for key, value in grpc_context.invocation_metadata() or ():
            if isinstance(value, str):
                sent.setdefault(key.lower(), []).append(value)
        api_key, authorization = (sent.get(key, [""])[-1] for key in ("x-api-key", "authorization"))
        return await self._access.refusal(api_key, authorization, ",".join(sent.get("x-forwarded-for", [])))

    async def _server_live(self, _: messages.ServerLiveRequest) -> Message:
        return messages.ServerLiveResponse(live=True)

    async def _server_ready(self, _: messages.ServerReadyRequest) -> Message:
        return messages.ServerReadyResponse(ready=await self._model.is_ready())

    async def _server_metadata(self, _: messages.ServerMetadataRequest) -> Message:
        return messages.ServerMetadataResponse(**server_metadata(self._model))

    async def _model_ready(self, request: messages.ModelReadyRequest) -> Message:
        require_named(self._model, request.name, request.version)
        return messages.ModelReadyResponse(ready=await self._model.is_ready())

    async def _model_metadata(self, request: messages.ModelMetadataRequest) -> Message:
        require_named(self._model, request.name, request.version)
        return messages.ModelMetadataResponse(**model_metadata(self._model))

    async def _model_infer(self, request: messages.ModelInferRequest) -> Message:
        model = self._model
        if request.ByteSize() > model.settings.max_inference_bytes:
            raise InferenceInputError(f"more than {model.settings.max_inference_bytes} bytes are not accepted")
        require_named(model, request.model_name, request.model_version)
        require_loaded(model)
        with model.admission.work() as slot:
            slot.hold(request.ByteSize())
            asked = await in_thread(_read_request, request, model.settings.max_upload_bytes)
            found = await model.infer(asked)
        answer = messages.ModelInferResponse(model_name=model.settings.model_name, id=request.id)
        await in_thread(_write_outputs, answer, request, asked, found, model.min_score)
        return answer

    async def _load(self, repository: Repository, request: messages.RepositoryModelLoadRequest) -> Message:
        require_named(self._model, request.model_name)
        await repository.load_model()
        return messages.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)

    async def _unload(self, repository: Repository, request: messages.RepositoryModelUnloadRequest) -> Message:
        require_named(self._model, request.model_name)
        await repository.unload_model()
        return messages.RepositoryModelUnloadResponse(model_name=request.model_name, isUnloaded=True)


def add_inference_servicer(servicer: Any, server: Any) -> None:
    """Registers the protocol's methods at a gRPC server; ``serve_config.yaml`` names this function to Ray Serve.

    Args:
        servicer: An ``InferenceServicer``; under Serve anything, as it puts its own routing in the place of ``answer``.
    """
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            servicer.answer, request_deserializer=request.FromString, response_serializer=_serialized
        )
        for method, request in _REQUESTS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _read_request(request: messages.ModelInferRequest, max_image_bytes: int) -> InferenceRequest:
    """
    Raises:
        InferenceInputError: It is not a request of the protocol, or not one for this detector.
    """
    check_inputs(len(request.inputs))
    check_outputs([output.name for output in request.outputs])
    (tensor,) = request.inputs
    if len(request.raw_input_contents) > 1 or (request.raw_input_contents and tensor.HasField("contents")):
        raise InferenceInputError("the contents stand in 'raw_input_contents' once, or in the input, not in both")
    if request.raw_input_contents:
        images = split_elements(request.raw_input_contents[0])
    else:
        images = list(tensor.contents.bytes_contents)
    check_tensor(tensor.name, tensor.datatype, tensor.shape, len(images))
    return make_request(images, _values(request.parameters), max_image_bytes)


def _write_outputs(
    answer: messages.ModelInferResponse,
    request: messages.ModelInferRequest,
    asked: InferenceRequest,
    found: Sequence[ImageDetections],
    min_score: float,
) -> None:
    answer.model_version = found[0].detector.version
    tensors = output_tensors(asked, found, min_score)
    for name in [output.name for output in request.outputs] or list(TENSORS):
        tensor = tensors[name]
        output = answer.outputs.add(name=name, datatype=TENSORS[name][0], shape=tensor.shape)
        if request.raw_input_contents:  # who sends raw bytes reads them too
            answer.raw_output_contents.append(tensor.tobytes())
        elif tensor.dtype.kind == "f":
            output.contents.fp32_contents.extend(tensor.ravel().tolist())
        else:
            output.contents.int64_contents.extend(tensor.ravel().tolist())


def _values(parameters: Mapping[str, messages.InferParameter]) -> dict[str, Any]:
    return {
        key: getattr(value, kind)
        for key, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _failed(grpc_context: Context, code: grpc.StatusCode, details: str) -> Message:
    grpc_context.set_code(code)
    grpc_context.set_details(details)
    return messages.ServerLiveResponse()
