"""This application with a detector that computes nothing and takes a fixed time: what is left is what serving does.

``import_path: evaluation.benchmark.programs.waiting:build_app`` in a Serve config; ``WAITING_S`` is the time, and
``WAITING_REPLICAS`` the number of its replicas, or the two ends between which they are scaled (``1-8``); one node holds
at most ``WAITING_PER_NODE`` of them.
"""

# No `from __future__ import annotations` here: Serve must see the class Settings, not its name as text.

import asyncio
import os

from ray import serve
from ray.serve import Application

from circles.detection import ImageDetections
from circles.detectors import detector_info
from circles.detectors.encoded import DetectionOutcome
from circles.settings import Settings
from deployments.ingress import IngressDeployment
from serve_app.builder import detector_options


class WaitingDetector:
    """Finds nothing in every picture, one picture after the other."""

    def __init__(self, settings: Settings, wait_s: float) -> None:
        self._info = detector_info(settings.detector)
        self._wait_s = wait_s
        self._turn = asyncio.Lock()

    async def detect(self, _image_bytes: bytes) -> DetectionOutcome:
        async with self._turn:
            await asyncio.sleep(self._wait_s)
        return ImageDetections(1, 1, self._info, ())


def build_app(settings: Settings) -> Application:
    """The application with as many replicas as the environment says; Ray reserves no cores for those that wait."""
    fewest, _, most = os.environ["WAITING_REPLICAS"].partition("-")
    replicas = {"detector_min_replicas": int(fewest), "detector_max_replicas": int(most or fewest)}
    options = detector_options(settings.model_copy(update=replicas))
    options["ray_actor_options"] = {"num_cpus": 0}
    # A wait is far longer than a detection.
    options["autoscaling_config"] |= {"target_ongoing_requests": 1, "downscale_delay_s": 10}
    if most_per_node := os.environ.get("WAITING_PER_NODE"):
        options["max_replicas_per_node"] = int(most_per_node)
    detector = serve.deployment(**options)(WaitingDetector).bind(settings, float(os.environ["WAITING_S"]))
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": settings.ingress_num_cpus},
        max_ongoing_requests=10_000,
        user_config={"min_score": settings.min_score},
    )
    return ingress(serve.ingress()(IngressDeployment)).bind(settings, detector)
