"""The mesh of the tests: times are short, buckets small, and tokens signed by a key of their own."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from deployments.inference import open_inference_pb2 as messages
from deployments.inference.v2_grpc import SERVICE_NAME
from tests.kuberay.manifests import Manifest, find
from tests.kuberay.mesh import Answer, Door, RunningMesh, running_mesh
from tests.kuberay.resources import seconds

TIME_SCALE = 1 / 50
BUCKET = 5
"""Requests that a rate limit lets through, as long as the tests run."""
MODEL = "circle-detector"
SIGNING_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@contextlib.contextmanager
def scaled_mesh(folder: Path) -> Iterator[RunningMesh]:
    """Gateways and pods, running."""
    key = jwt.algorithms.RSAAlgorithm.to_jwk(SIGNING_KEY.public_key(), as_dict=True)
    jwks = json.dumps({"keys": [{**key, "kid": "tests", "alg": "RS256"}]})
    with running_mesh(folder, jwks, _scale) as mesh:
        yield mesh


def is_by_gateway(answer: Answer) -> bool:
    """Every answer of the application says an id of the request."""
    return "x-request-id" not in answer.headers


@contextlib.contextmanager
def called(door: Door, service: str = SERVICE_NAME) -> Iterator[Any]:
    """A function that calls a method of the service with a request, and returns the answer."""
    options = [("grpc.ssl_target_name_override", door.host), ("grpc.default_authority", door.host)]
    credentials = grpc.ssl_channel_credentials(door.authority.certificate.read_bytes())
    with grpc.secure_channel(f"{door.address}:{door.https_port}", credentials, options) as channel:

        def call(method: str, request: Any) -> Any:
            response = getattr(messages, type(request).__name__.replace("Request", "Response"))
            unary = channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            return unary(request, timeout=30)

        yield call


def code_of(call: Any) -> grpc.StatusCode | None:
    """The status of a call that fails; None when it does not."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def _scale(objects: list[Manifest]) -> None:
    """Shortens timeouts, and lets the buckets of the rate limit hold few requests for as long as the tests run."""
    for route in find(objects, "VirtualService", "circles")["spec"]["http"]:
        if "timeout" in route:
            route["timeout"] = f"{seconds(route['timeout']) * TIME_SCALE:g}s"
    for patch in find(objects, "EnvoyFilter", "circles-rate-limit")["spec"]["configPatches"]:
        if patch["applyTo"] == "HTTP_ROUTE":
            limit = patch["patch"]["value"]["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"]
            limit["token_bucket"] |= {"max_tokens": BUCKET, "fill_interval": "3600s"}
