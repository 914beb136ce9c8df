"""The HTTP application around one replica's services. It knows no Serve, so tests can call it in their own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.staticfiles import StaticFiles

import circles
from deployments.application_model import ApplicationModel
from deployments.browsers import (
    PAGE,
    BrowserHeadersMiddleware,
    CorsMiddleware,
    ForeignPageMiddleware,
    documentation_policy,
)
from deployments.inference.v2_rest import HEADER_LENGTH
from deployments.middleware import (
    AccessMiddleware,
    CanonicalPathMiddleware,
    HeadMiddleware,
    InternalErrorMiddleware,
    RequestIdMiddleware,
)
from deployments.problems import install_problem_handlers, problem_responses
from deployments.routes import images, inference, objects, system
from deployments.services import Services
from deployments.timings import ServerTimingMiddleware

_API_PREFIX = "/api/v1"
_DOCS_FILES = "/static/docs"
_PAGE_FILES = "/static/page"
_DOCS = "/docs"
_UNLIMITED_PATHS = ("/health", "/ready")
_OPEN_PATHS = (
    *_UNLIMITED_PATHS,
    *("/", _DOCS, "/openapi.json"),
    *(f"{_DOCS_FILES}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")),
    *(f"{_PAGE_FILES}/{name}" for name in ("page.js", "page.css", "icon.svg")),
)

# No credentials: a key is sent by the page's own code, never by the browser.
_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": [
        *("X-API-Key", "Authorization", "Content-Type", "Prefer", "If-None-Match", "X-Request-ID"),
        HEADER_LENGTH,
    ],
    "expose_headers": [
        *("X-Request-ID", "Location", "Retry-After", "ETag", "Preference-Applied"),
        *(HEADER_LENGTH, inference.LATENCY_HEADER),
    ],
}


def create_api(services: Services, *, is_behind_serve: bool) -> FastAPI:
    """The application of one replica; it runs the services while it runs.

    Args:
        services: What the routes work with.
        is_behind_serve: Whether Ray Serve stands in front; it then writes the request id into responses.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with services.running():
            yield

    app = FastAPIOffline(
        title="Circle detection",
        description="Finds circular objects in photographs. Every /api/v1 path also answers without that prefix.",
        version=circles.__version__,
        lifespan=lifespan,
        docs_url=_DOCS,
        redoc_url=None,
        static_url=_DOCS_FILES,
    )
    app.state.services = services
    app.state.served_model = ApplicationModel(services)
    # What every route may answer; also keeps FastAPI from documenting its own kind of 422.
    api = APIRouter(responses=problem_responses(401, 422, 429, 500, 503))
    for router in (images.router, objects.router, system.router):
        api.include_router(router)
    app.include_router(api, prefix=_API_PREFIX)
    app.include_router(api, include_in_schema=False)
    app.include_router(system.bare_router)
    app.include_router(inference.router)
    app.mount(_PAGE_FILES, StaticFiles(directory=system.PAGE_FOLDER), name="page")
    install_problem_handlers(app)

    collections = [prefix + images.COLLECTION_PATH for prefix in ("", _API_PREFIX)]
    # The one added last meets a request first.
    app.add_middleware(
        AccessMiddleware, access=services.access, open_paths=_OPEN_PATHS, unlimited_paths=_UNLIMITED_PATHS
    )
    app.add_middleware(CanonicalPathMiddleware, paths_with_slash=collections)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(InternalErrorMiddleware)
    origins = services.settings.cors_origin_list
    app.add_middleware(ForeignPageMiddleware, allowed_origins=origins)
    if origins:
        app.add_middleware(CorsMiddleware, allow_origins=origins, **_CORS)
    policies = {"/": PAGE, _DOCS: documentation_policy(app)}
    app.add_middleware(BrowserHeadersMiddleware, policies=policies, is_shared=bool(origins))
    app.add_middleware(RequestIdMiddleware, is_behind_serve=is_behind_serve)
    if services.settings.server_timing:
        app.add_middleware(ServerTimingMiddleware)
    return app
