"""The model server's application: inference protocols over REST and gRPC around one model, and nothing stored.

It knows no KServe; ``kserve_model.py`` brings the model and starts it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import circles
from deployments.access import Access
from deployments.api_keys import ApiKeys
from deployments.browsers import BrowserHeadersMiddleware, documentation_policy
from deployments.inference.served_model import ServedModel, require_named
from deployments.inference.v2_grpc import InferenceServicer, Repository, add_inference_servicer
from deployments.middleware import InternalErrorMiddleware, RequestIdMiddleware
from deployments.routes import inference

_GRPC_GRACE_S = 5.0  # after REST has had its own
# Calls beside those that detect: health and the like.
_HEADROOM = 64


class LoadableModel(ServedModel, Repository, Protocol):
    """A model that clients may unload and load again."""


def create_model_server(model: LoadableModel, grpc_address: str) -> FastAPI:
    """The application; it serves gRPC while it runs.

    Args:
        grpc_address: Host and port to listen on.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        max_bytes = model.settings.max_inference_bytes
        server = grpc.aio.server(
            maximum_concurrent_rpcs=model.settings.max_in_flight + _HEADROOM,
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", max_bytes),
                ("grpc.so_reuseport", 0),  # or a second server on this port would answer half of the calls
            ],
        )
        add_inference_servicer(InferenceServicer(model, Access(ApiKeys([])), model), server)
        server.add_insecure_port(grpc_address)
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=_GRPC_GRACE_S)
            await model.unload_model()

    app = FastAPIOffline(
        title="Circle detection model server",
        description="KServe's V1 protocol and the Open Inference Protocol (V2; gRPC on a port of its own).",
        version=circles.__version__,
        lifespan=lifespan,
        redoc_url=None,
        static_url="/static/docs",
    )
    app.state.served_model = model
    app.include_router(inference.router)
    app.include_router(_repository_router(model))
    app.include_router(_server_router)
    app.add_exception_handler(HTTPException, _on_http_exception)
    # The one added last meets a request first.
    app.add_middleware(InternalErrorMiddleware)
    app.add_middleware(BrowserHeadersMiddleware, policies={"/docs": documentation_policy(app)}, is_shared=False)
    app.add_middleware(RequestIdMiddleware, is_behind_serve=False)
    return app


_server_router = APIRouter(tags=["server"])


@_server_router.get("/")
async def get_alive() -> dict[str, str]:
    """Alive; touches nothing."""
    return {"status": "alive"}


@_server_router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """Prometheus metrics: the seconds of requests and their steps, and the process."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _repository_router(model: LoadableModel) -> APIRouter:
    """The protocol's model repository extension, for the one model."""
    router = APIRouter(
        prefix="/v2/repository",
        tags=["model repository"],
        route_class=inference.ProtocolRoute,
        responses=inference.RESPONSES,
    )

    @router.post("/index")
    async def index() -> list[dict[str, str]]:
        """The models, and whether each is loaded."""
        state = "READY" if await model.is_ready() else "UNAVAILABLE"
        return [{"name": model.settings.model_name, "state": state, "reason": ""}]

    @router.post("/models/{model_name}/load")
    async def load(model_name: str) -> dict[str, Any]:
        """Loads the model, if it is not."""
        require_named(model, model_name)
        await model.load_model()
        return {"name": model_name, "load": True}

    @router.post("/models/{model_name}/unload")
    async def unload(model_name: str) -> dict[str, Any]:
        """Unloads the model; requests are answered 503 until it is loaded again."""
        require_named(model, model_name)
        await model.unload_model()
        return {"name": model_name, "unload": True}

    return router


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    """Unknown paths and methods, in the protocols' form."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
