"""Tokens at the gateway, by the rendered objects."""

import time
import uuid
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from deployments.inference import open_inference_pb2 as messages
from tests.kuberay.manifests import find
from tests.kuberay.mesh import RunningMesh, overlay_with
from tests.kuberay.scaled_mesh import SIGNING_KEY, called, code_of


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a token as component ``jwt`` wants it."""
    objects = overlay_with("local", "jwt", tmp_path_factory.mktemp("jwt"))
    (rule,) = find(objects, "RequestAuthentication", "circles-jwt")["spec"]["jwtRules"]
    return {"iss": rule["issuer"], "aud": rule["audiences"][0], "sub": "somebody", "exp": time.time() + 600}


def signed(claims: dict[str, Any], key: rsa.RSAPrivateKey = SIGNING_KEY) -> dict[str, str]:
    """The header with such a token."""
    return {"Authorization": f"Bearer {jwt.encode(claims, key, 'RS256', {'kid': 'tests'})}"}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({}, 200, id="good"),
        pytest.param({"iss": "https://identity.example.com"}, 401, id="of another issuer"),
        pytest.param({"aud": "squares"}, 403, id="for another audience"),
        pytest.param({"exp": 1_000_000_000}, 401, id="expired"),
        pytest.param({"sub": None}, 403, id="of nobody"),
    ],
)
def test_token_decides(mesh: RunningMesh, claims: dict[str, Any], changes: dict[str, Any], status: int) -> None:
    token = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    assert mesh.doors["jwt"].ask("/images/", headers=signed(token)).status == status


def test_without_a_token_only_the_probes_are_answered(mesh: RunningMesh, claims: dict[str, Any]) -> None:
    door = mesh.doors["jwt"]
    for path in ("/health", "/health/", "/ready", "/ready/"):
        assert door.ask(path).status == 200, path
    closed = ["/", "/images/", "/api/v1/config", "/docs", "/health/../images/", "/healthx", "//health", "/v2"]
    for path in closed:
        assert door.ask(path).status == 403, path
    assert door.ask("/images/", headers={"Host": door.host.upper()}).status == 403
    assert door.ask("/images/", headers={"Host": f"{door.host}:443"}).status == 403
    assert door.ask("/images/", headers={"Authorization": "Bearer nonsense"}).status == 401
    assert door.ask_plainly("/images/").status == 403  # nobody is led on to send a token by plain HTTP first
    other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert door.ask("/images/", headers=signed(claims, other_key)).status == 401
    with called(door) as call:
        assert code_of(lambda: call("ServerLive", messages.ServerLiveRequest())) is grpc.StatusCode.PERMISSION_DENIED


def test_token_ends_at_the_gateway(mesh: RunningMesh, claims: dict[str, Any]) -> None:
    probe = uuid.uuid4().hex
    key = {"X-API-Key": "the application's own business"}
    assert mesh.doors["jwt"].ask(f"/images/?{probe}", headers=signed(claims) | key).status == 200
    (arrived,) = mesh.application.probed(probe)
    assert "authorization" not in arrived.headers
    assert "x-api-key" in arrived.headers
