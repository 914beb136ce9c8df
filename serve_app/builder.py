"""build_app: the only place that knows all parts, and how each deployment is run in each mode."""

# No `from __future__ import annotations` here: Serve must see the class Settings, not its name as text.

import os
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from circles.settings import Settings
from deployments.detector import DetectorDeployment
from deployments.ingress import IngressDeployment
from deployments.routing import FewestOutstandingRouter

# Requests beside uploads (reading, listing, probes) that one ingress replica takes before Serve makes them wait. The
# application's own limits refuse long before that, with a reason and a Retry-After.
_INGRESS_HEADROOM = 1000
# Calls that wait in a handle for a detector replica beside those of uploads: the reconciler's.
_DETECTOR_QUEUE_HEADROOM = 16
# In work or waiting, for each detector replica: it is never idle between two pictures, or has half a batch on a GPU,
# and nobody waits long.
_ONGOING_PER_REPLICA = 4
# Serve learns that a replica has died when it asks for its health, and starts the next one then.
_HEALTH_CHECK_PERIOD_S = 1.0
_MESSAGE_LIMIT_VARIABLE = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
_DEFAULT_MESSAGE_LIMIT = 4 * 1024 * 1024  # bytes
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024


def build_app(settings: Settings) -> Application:
    """The application as these settings want it: the ingress, and the detector it calls unless another one answers.

    Raises:
        ValueError: An upload of the allowed size would not fit into a message between the two.
    """
    _check_message_limit(settings.max_upload_bytes)
    has_detector = settings.mode == "real" and settings.model_server_url is None
    detector = _detector(settings) if has_detector else None
    deployment = serve.deployment(
        name="Ingress",
        num_replicas=settings.ingress_replicas,
        ray_actor_options={"num_cpus": settings.ingress_num_cpus},
        max_ongoing_requests=settings.max_in_flight + _INGRESS_HEADROOM,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=15,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        # A new version starts beside the old one, which goes when it has: one that cannot start changes nothing. A pod
        # has room for one (the resource `ingress`), and a second one would wait for it for ever.
        max_surge_percent=0 if "KUBERNETES_SERVICE_HOST" in os.environ else 100,
        user_config={"min_score": settings.min_score},
    )
    # Serve keeps what is bound here for as long as the application is deployed, and starts each replica from it: a
    # password would lie in its checkpoint, and a key that was replaced would open a replica that is started later.
    bound = settings.without_environment_secrets()
    return deployment(serve.ingress()(IngressDeployment)).bind(bound, detector)


def detector_options(settings: Settings) -> dict[str, Any]:
    """How the detector's replicas are run, scaled and chosen: options of ``serve.deployment``."""
    return {
        "name": "Detector",
        "ray_actor_options": {"num_cpus": settings.detector_num_cpus, "num_gpus": settings.detector_num_gpus},
        "autoscaling_config": {
            "min_replicas": settings.detector_min_replicas,
            "max_replicas": settings.detector_max_replicas,
            "target_ongoing_requests": _ONGOING_PER_REPLICA,
            # How often handles tell what waits, and over how long it is averaged. With the defaults, 10 s and 30 s, a
            # sleeping detector was woken 10 s after the first picture had come.
            "metrics_interval_s": 0.5,
            "look_back_period_s": 5,
            "upscale_delay_s": 2,
            "downscale_delay_s": 60,
        },
        # All that may come: what waits does so in the replicas, which take the next batch at once. A handle whose
        # replicas are full tries again after ever longer pauses, while they run dry.
        "max_ongoing_requests": settings.ingress_replicas * (settings.max_in_flight + _DETECTOR_QUEUE_HEADROOM),
        "max_queued_requests": settings.max_in_flight + _DETECTOR_QUEUE_HEADROOM,
        "request_router_config": RequestRouterConfig(
            request_router_class=FewestOutstandingRouter,  # type: ignore[arg-type]  # annotated wrongly
            request_router_kwargs={"most_outstanding": max(_ONGOING_PER_REPLICA, 2 * settings.largest_batch)},
        ),
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
    }


def _detector(settings: Settings) -> Application:
    return serve.deployment(**detector_options(settings))(DetectorDeployment).bind(settings.without_secrets())


def _check_message_limit(max_upload_bytes: int) -> None:
    """On the fast path handles speak gRPC, and an upload above its limit would fail on the way to the detector."""
    is_fast_path = os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1"
    limit = int(os.environ.get(_MESSAGE_LIMIT_VARIABLE, str(_DEFAULT_MESSAGE_LIMIT)))
    if is_fast_path and max_upload_bytes + _MESSAGE_OVERHEAD_BYTES > limit:
        raise ValueError(
            f"MAX_UPLOAD_BYTES is {max_upload_bytes}, but {_MESSAGE_LIMIT_VARIABLE} is {limit}: raise it in serve.env"
        )
