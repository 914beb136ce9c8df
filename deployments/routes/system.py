"""The service about itself: alive, ready, set up how."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

import circles
from deployments.schemas import HealthBody, ReadyBody
from deployments.services import ServicesParameter

PAGE_FOLDER = Path(__file__).parent.parent / "page"

bare_router = APIRouter(tags=["system"])
router = APIRouter(tags=["system"])


@bare_router.get("/health")
async def health(services: ServicesParameter) -> HealthBody:
    """Alive; touches nothing."""
    return HealthBody(version=circles.__version__, mode=services.settings.mode)


@bare_router.get("/ready", responses={503: {"model": ReadyBody, "description": "Some part is away"}})
async def ready(services: ServicesParameter, response: Response) -> ReadyBody:
    """Whether database, storage and detector are there; tried anew every few seconds at most."""
    is_ready, states = await services.readiness.states()
    response.status_code = 200 if is_ready else 503
    return ReadyBody(status="ok" if is_ready else "unavailable", checks=states)


@bare_router.get("/", include_in_schema=False)
async def home() -> FileResponse:
    """The page for people."""
    return FileResponse(PAGE_FOLDER / "index.html")


@router.get("/config")
async def config(services: ServicesParameter) -> dict[str, str | int | float | None]:
    """The settings in effect, without secrets."""
    return {**services.settings.public(), "min_score": services.min_score}
