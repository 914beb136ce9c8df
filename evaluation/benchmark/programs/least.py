"""The least that detects under Ray Serve: the same way through Serve as this application's, and nothing beside it.

``import_path: evaluation.benchmark.programs.least:build_app`` in a Serve config. The detector computes in its replica,
not in a process of its own, and nothing is checked or kept: what it costs beyond the limit is what Serve and Ray cost.
"""

# No `from __future__ import annotations` here: Serve must see the class Settings, not its name as text.

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, UploadFile
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from circles.detectors.encoded import DetectionOutcome
from circles.settings import Settings
from evaluation.benchmark.programs.bare import answer_of, bare_detector
from serve_app.builder import detector_options


class LeastIngress:
    """Receives a picture, has a replica look at it, answers."""

    def __init__(self, detector: DeploymentHandle[Any]) -> None:
        self._detector = detector.detect

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI()
        app.get("/ready")(self._ready)
        app.post("/detect")(self._detect)
        return app

    async def _ready(self) -> dict[str, str]:
        return {}

    async def _detect(self, file: UploadFile) -> dict[str, object]:
        return answer_of(await self._detector.remote(await file.read()))


class LeastDetector:
    """Detects in a thread, so that the replica's loop stays free."""

    def __init__(self) -> None:
        self._detector = bare_detector()
        self._executor = ThreadPoolExecutor(max_workers=1)  # a detector serves one caller at a time

    async def detect(self, image_bytes: bytes) -> DetectionOutcome:
        (outcome,) = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._detector.detect, [image_bytes]
        )
        return outcome


def build_app(settings: Settings) -> Application:
    """The detector with this application's own replicas, queues and routing."""
    detector = serve.deployment(**detector_options(settings))(LeastDetector).bind()
    ingress = serve.deployment(
        name="Ingress", ray_actor_options={"num_cpus": settings.ingress_num_cpus}, max_ongoing_requests=10_000
    )
    return ingress(serve.ingress()(LeastIngress)).bind(detector)
