"""Services for tests, each with ports and a data folder of its own."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from circles.settings import Settings
from deployments.api import create_api
from deployments.async_detectors import AsyncDetector
from deployments.services import Services, open_services
from serve_app.processes import free_port


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0, period_s: float = 0.02) -> None:
    """Returns when the condition holds; fails the test when it does not in time.

    Args:
        period_s: Between two looks.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}"
        time.sleep(period_s)


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Settings whose data is in this folder."""
    return Settings(database_url=f"sqlite:///{folder}/db.sqlite3", storage_url=f"file:{folder}/images", **changes)


@dataclass(frozen=True)
class RunningApi:
    """The HTTP application in this process, without Serve, and what it works with."""

    url: str
    services: Services
    client: httpx2.Client


@contextlib.contextmanager
def running_api(settings: Settings, detector: AsyncDetector) -> Iterator[RunningApi]:
    """The application of one replica behind uvicorn, in a thread of this process."""
    services = open_services(settings, detector, holder="a test")
    with (
        running_app(create_api(services, is_behind_serve=False)) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        yield RunningApi(url, services, client)


@contextlib.contextmanager
def running_app(app: FastAPI, port: int | None = None) -> Iterator[str]:
    """An application behind uvicorn, in a thread of this process; its address."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()
