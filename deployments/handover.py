"""Handover: how a replica that is to replace another one begins while that one still has the data folder.

A new version is started beside the old one, so that one which cannot start changes nothing. But a data folder has one
user. So the new replica is constructed, and checked, without it; requests that reach it wait until the old one has
finished what it began, and given the folder back.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable

import psutil
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from circles.errors import CirclesError, UnavailableError
from circles.settings import Settings, local_folders
from circles.storage.lock import holder_pid
from deployments.problems import problem_of, problem_response
from deployments.services import Services

logger = logging.getLogger("ray.serve")


def has_predecessor(settings: Settings) -> bool:
    """Whether a process of the same Ray node has one of the data folders: a replica that this one is to replace.

    Whoever else may have it is another service, and this one must not start.
    """
    return any(_is_sibling(pid) for folder in local_folders(settings) if (pid := holder_pid(folder)) is not None)


def _is_sibling(pid: int) -> bool:
    try:
        return pid != os.getpid() and psutil.Process(pid).ppid() == os.getppid()
    except psutil.NoSuchProcess:
        return False


class LateApi:
    """An ASGI application whose services are opened after its start. Until then requests wait."""

    def __init__(self, open_services: Callable[[], Services], create_api: Callable[[Services], FastAPI]) -> None:
        """
        Args:
            open_services: Blocks until the predecessor has gone.
            create_api: The application for these services; it runs them.
        """
        self._open_services = open_services
        self._create_api = create_api
        self._opening: asyncio.Task[tuple[Services, FastAPI]] | None = None

    def check_health(self) -> None:
        """Raises what kept the services from being opened."""
        if self._opening is not None and self._opening.done():
            self._opening.result()

    async def services(self) -> Services:
        """The services, once they are open; raises as ``open_services``."""
        services, _ = await self._opened()
        return services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run(receive, send)
            return
        try:
            _, api = await self._opened()
        except CirclesError:  # in the log, with what is nobody else's business
            await _unavailable(scope)(scope, receive, send)
            return
        await api(scope, receive, send)

    async def _opened(self) -> tuple[Services, FastAPI]:
        assert self._opening is not None, "the lifespan comes first"
        return await asyncio.shield(self._opening)  # a client that goes away takes nobody else with it

    async def _run(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        async with self._running():
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:

            async def open_all() -> tuple[Services, FastAPI]:
                services = await asyncio.to_thread(self._open_services)
                api = self._create_api(services)
                await stack.enter_async_context(api.router.lifespan_context(api))
                logger.info("the data folder is handed over")
                return services, api

            self._opening = asyncio.create_task(open_all())
            self._opening.add_done_callback(_log_failure)
            yield
            # Also when it has just begun: what it opens must be closed.
            await asyncio.wait([self._opening])


def _unavailable(scope: Scope) -> ASGIApp:
    error = UnavailableError("this replica could not take over from the one before it, and is about to be replaced")
    document, headers = problem_of(error, scope["path"], Headers(scope=scope).get("X-Request-ID", "-"))
    return problem_response(scope, document, headers)


def _log_failure(opening: "asyncio.Task[tuple[Services, FastAPI]]") -> None:
    if not opening.cancelled() and opening.exception() is not None:
        logger.critical("the data folder was not handed over", exc_info=opening.exception())
