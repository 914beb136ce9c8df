"""Inference protocols over REST: KServe's V1 and the Open Inference Protocol ("V2"), and errors in their own form.

The application and the model server offer the same routes; ``app.state.served_model`` is what they work with.
"""

import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from circles.detection import ImageDetections
from circles.errors import CirclesError, DetectorUnavailableError
from deployments.disconnects import unless_client_leaves
from deployments.inference import v1, v2_rest
from deployments.inference.requests import InferenceRequest, make_request
from deployments.inference.served_model import ServedModel, require_loaded, require_named
from deployments.inference.v2_rest import BINARY_MEDIA_TYPE, HEADER_LENGTH
from deployments.problems import RequestError, log_failure, problem_document, problem_of, request_id_of
from deployments.threads import in_thread
from deployments.uploads import media_type_of, read_body

LATENCY_HEADER = "prediction-time-latency"
"""Of answers to inference requests: how long the detection took, in ms."""


class ProtocolRoute(APIRoute):
    """Answers errors as inference protocols do, ``{"error": "..."}``, instead of as problem documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_and_tell_errors(request: Request) -> Response:
            scope = request.scope
            path, request_id = scope["path"], request_id_of(scope)
            headers: dict[str, str] = {}
            cause = None
            try:
                return await handle(request)
            except CirclesError as error:
                document, headers = problem_of(error, path, request_id)
            except RequestError as error:
                document = problem_document(error.status, error.title, error.detail, path, request_id)
            except ClientDisconnect:
                raise  # nobody is left to answer
            # The net below, as InternalErrorMiddleware is for other routes.
            except Exception as error:  # noqa: BLE001 - it is logged with its traceback
                cause = error
                detail = f"the service made a mistake; its log tells more under request id {request_id}"
                document = problem_document(500, "Internal error", detail, path, request_id)
            log_failure(scope, document, cause)
            return JSONResponse({"error": document["detail"]}, int(str(document["status"])), headers)

        return handle_and_tell_errors


async def _served_model(request: Request) -> ServedModel:
    """A coroutine: FastAPI gives plain functions to threads."""
    model: ServedModel = request.app.state.served_model
    return model


ServedModelParameter = Annotated[ServedModel, Depends(_served_model)]


async def _named_model(model: ServedModelParameter, request: Request, model_name: str) -> ServedModel:
    """The model, when it has the name and the version that the path says."""
    require_named(model, model_name, request.path_params.get("version", ""))
    return model


NamedModelParameter = Annotated[ServedModel, Depends(_named_model)]

_ERROR = {"content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is not what the protocol and the detector take", **_ERROR},
    404: {"description": "No such model", **_ERROR},
    408: {"description": "The body was not sent in time", **_ERROR},
    413: {"description": "The body is too large", **_ERROR},
    429: {"description": "More at once than allowed", **_ERROR},
    503: {"description": "The model is not ready", **_ERROR},
    "default": {"description": "Any other failure", **_ERROR},  # keeps FastAPI from documenting its own kind of 422
}

router = APIRouter(route_class=ProtocolRoute, responses=RESPONSES)


def _inlined_schema(body: type[BaseModel]) -> dict[str, Any]:
    """The body's JSON schema in one piece, as OpenAPI wants it where FastAPI does not read the body itself."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, dict) and "$ref" in node:
            return inlined(definitions[node["$ref"].rpartition("/")[2]])
        if isinstance(node, dict):
            return {key: inlined(value) for key, value in node.items()}
        return [inlined(value) for value in node] if isinstance(node, list) else node

    result: dict[str, Any] = inlined(schema)
    return result


def _takes(body: type[BaseModel], binary_media_type: str) -> dict[str, Any]:
    """OpenAPI's description of a request body that is JSON of this form, or binary."""
    content = {
        "application/json": {"schema": _inlined_schema(body)},
        binary_media_type: {"schema": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": content}}


@router.get("/v1/models", tags=["inference, V1"])
async def list_v1_models(model: ServedModelParameter) -> dict[str, list[str]]:
    """The one model's name."""
    return {"models": [model.settings.model_name]}


@router.get("/v1/models/{model_name}", tags=["inference, V1"])
async def get_v1_model(model: NamedModelParameter) -> dict[str, str | bool]:
    """Whether the model is ready; 503 when it is not."""
    if not await model.is_ready():
        raise DetectorUnavailableError(f"model '{model.settings.model_name}' is not ready")
    return {"name": model.settings.model_name, "ready": True}


@router.post(
    "/v1/models/{model_name}:predict",
    tags=["inference, V1"],
    response_class=JSONResponse,
    openapi_extra=_takes(v1.PredictBody, "image/*"),
)
async def predict(request: Request, model: NamedModelParameter) -> Response:
    """Detects in pictures given in base64, or in the one whose bytes are the body (`image/*`)."""
    settings = model.settings
    require_loaded(model)
    with model.admission.enter() as slot:
        body = await read_body(request, slot, settings.max_inference_bytes, settings.upload_timeout_s)
        slot.work()
        if media_type_of(request).startswith("image/"):
            asked = make_request([body], dict(request.query_params), settings.max_upload_bytes)
        else:
            asked = await in_thread(v1.read_request, body, settings.max_upload_bytes)
        found, headers = await _infer(request, model, asked)
    answer = await in_thread(v1.answer, asked, found, model.min_score)
    return Response(answer, media_type="application/json", headers=headers)


@router.get("/v2", tags=["inference, V2"])
async def get_server(model: ServedModelParameter) -> dict[str, Any]:
    """What speaks here, and the extensions of the protocol that it knows."""
    return v2_rest.server_metadata(model)


@router.get("/v2/health/live", tags=["inference, V2"])
async def get_live() -> dict[str, bool]:
    """Alive; touches nothing."""
    return {"live": True}


@router.get("/v2/health/ready", tags=["inference, V2"])
async def get_ready(model: ServedModelParameter) -> JSONResponse:
    """Whether the model is ready; 503 when it is not."""
    is_ready = await model.is_ready()
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/v2/models", tags=["inference, V2"])
async def list_models(model: ServedModelParameter) -> dict[str, list[str]]:
    """The one model's name."""
    return {"models": [model.settings.model_name]}


@router.get("/v2/models/{model_name}", tags=["inference, V2"])
@router.get("/v2/models/{model_name}/versions/{version}", include_in_schema=False)
async def get_model(model: NamedModelParameter) -> dict[str, Any]:
    """The model's version, inputs and outputs."""
    return v2_rest.model_metadata(model)


@router.get("/v2/models/{model_name}/ready", tags=["inference, V2"])
@router.get("/v2/models/{model_name}/versions/{version}/ready", include_in_schema=False)
async def get_model_ready(model: NamedModelParameter) -> JSONResponse:
    """Whether the model is ready; 503 when it is not."""
    is_ready = await model.is_ready()
    return JSONResponse({"name": model.settings.model_name, "ready": is_ready}, 200 if is_ready else 503)


@router.post(
    "/v2/models/{model_name}/infer",
    tags=["inference, V2"],
    response_class=JSONResponse,
    openapi_extra=_takes(v2_rest.InferBody, BINARY_MEDIA_TYPE),
)
@router.post("/v2/models/{model_name}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, model: NamedModelParameter) -> Response:
    """Detects in the pictures of the BYTES tensor `image`: base64 strings in JSON, or raw bytes after it."""
    settings = model.settings
    require_loaded(model)
    with model.admission.enter() as slot:
        body = await read_body(request, slot, settings.max_inference_bytes, settings.upload_timeout_s)
        slot.work()
        asked = await in_thread(
            v2_rest.read_request, body, request.headers.get(HEADER_LENGTH), settings.max_upload_bytes
        )
        found, headers = await _infer(request, model, asked.request)
    content, header_length = await in_thread(v2_rest.write_response, asked, found, model.min_score, settings.model_name)
    if header_length is None:
        return Response(content, headers=headers, media_type="application/json")
    return Response(content, headers={**headers, HEADER_LENGTH: str(header_length)}, media_type=BINARY_MEDIA_TYPE)


async def _infer(
    request: Request, model: ServedModel, asked: InferenceRequest
) -> tuple[list[ImageDetections], dict[str, str]]:
    """What was found, and the header that says how long it took."""
    started = time.perf_counter()
    found = await unless_client_leaves(request, model.infer(asked))
    return found, {LATENCY_HEADER: f"{(time.perf_counter() - started) * 1000:.3f}"}
