"""Nobody without a key gets anywhere, and nobody asks too often."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import RouteContext, iter_route_contexts
from pydantic import ValidationError
from starlette.routing import Mount

from circles.settings import Settings, why_refused
from deployments.api import create_api
from deployments.api_keys import ApiKeys
from deployments.client_address import NO_ADDRESS, client_address
from deployments.rate_limit import RateLimiter
from deployments.services import open_services
from tests.api.test_errors import assert_problem
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import RunningApi, running_api, settings_in, wait_until

OPEN = {
    *("/health", "/ready", "/", "/docs", "/openapi.json"),
    *(f"/static/docs/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")),
    *(f"/static/page/{name}" for name in ("page.js", "page.css", "icon.svg")),
}
"""What the contract leaves open, and nothing else."""


def serving(folder: Path, **settings: Any) -> Any:
    return running_api(settings_in(folder, **settings), GatedDetector(FixedDetector()))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with serving(tmp_path_factory.mktemp("locked"), api_keys="alpha") as api:
        yield api


def every_request(folder: Path) -> set[tuple[str, str]]:
    """Method and path of all that the application knows, whether its documentation lists it or not."""
    services = open_services(settings_in(folder), GatedDetector(FixedDetector()), holder="a test")
    app = create_api(services, is_behind_serve=False)
    services.database.close()
    for lock in services.locks:
        lock.release()
    return {request for context in iter_route_contexts(app.routes) for request in _requests(context)}


def _requests(context: RouteContext) -> Iterator[tuple[str, str]]:
    if isinstance(context.route, Mount):
        (folder,) = context.route.app.all_directories  # type: ignore[attr-defined]  # mounts are of files
        for file in Path(folder).rglob("*"):
            yield "GET", f"{context.path}/{file.relative_to(folder)}"
        return
    assert context.path is not None
    assert context.methods, context
    for method in context.methods:
        yield method, re.sub(r"\{(\w+)(:\w+)?\}", "circle-detector", context.path)


def test_all_but_the_open_routes_want_a_key(locked: RunningApi, tmp_path: Path) -> None:
    requests = every_request(tmp_path)
    assert len({path for _, path in requests}) > 30
    assert {path for _, path in requests} > OPEN
    statuses = {request: locked.client.request(*request).status_code for request in requests}
    assert {path for (_, path), status in statuses.items() if status != 401} == OPEN


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "HEAD", "PUT"])
def test_unknown_methods_are_no_way_in(locked: RunningApi, method: str) -> None:
    assert locked.client.request(method, "/images/").status_code in (400, 401)


@pytest.mark.parametrize(
    "path",
    [
        "/images/?x=/health",
        "/health/../images/",
        "//images/",
        "/images/;/health",
        "/HEALTH",
        "/docs/../config",
        "/config%2f",
    ],
)
def test_no_spelling_of_a_path_opens_it(locked: RunningApi, path: str) -> None:
    request = httpx2.Request("GET", locked.url, extensions={"target": path.encode()})
    assert locked.client.send(request).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"X-API-Key": ""}, id="empty"),
        pytest.param({"X-API-Key": "Alpha"}, id="another case"),
        pytest.param({"X-API-Key": "alph"}, id="a part"),
        pytest.param({"X-API-Key": "alpha,alpha"}, id="twice"),
        pytest.param({"X-API-Key": "\xe4lpha"}, id="not ASCII"),
        pytest.param({"X-API-Key": "a" * 30_000}, id="30,000 letters"),
        pytest.param({"Authorization": "alpha"}, id="no scheme"),
        pytest.param({"Authorization": "Basic alpha"}, id="another scheme"),
        pytest.param({"Authorization": "Bearer"}, id="no token"),
        pytest.param({"Cookie": "X-API-Key=alpha"}, id="cookie"),
    ],
)
def test_what_is_no_key_is_refused(locked: RunningApi, headers: dict[str, str]) -> None:
    sent = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    response = locked.client.get("/images/?api_key=alpha", headers=sent)
    assert_problem(response, 401)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_may_be_known_by_its_hash_alone(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "deployments.api_keys"], capture_output=True, text=True, check=True
    ).stdout
    key = made.split()[made.split().index("client:") + 1]
    key_hash = made.split()[-1]
    assert len(key) >= 43  # 256 bits in base64
    assert key not in key_hash
    with serving(tmp_path, api_keys=key_hash) as api:
        assert api.client.get("/images/", headers={"X-API-Key": key}).status_code == 200
        assert api.client.get("/images/", headers={"X-API-Key": key_hash}).status_code == 401
        assert api.client.get("/images/", headers={"X-API-Key": key_hash.removeprefix("sha256:")}).status_code == 401


def test_keys_are_replaced_without_a_gap() -> None:
    """The old key alone, both, the new one alone: what clients do meanwhile is never refused."""
    old, both, new = ApiKeys(["old"]), ApiKeys(["old", "new"]), ApiKeys(["new"])
    assert old.owner("old", "")
    assert both.owner("old", "") != both.owner("", "Bearer new") is not None
    assert both.owner("old", "") is not None
    assert (new.owner("old", ""), new.owner("new", "") is None) == (None, False)


def test_no_key_can_be_read_from_memory() -> None:
    keys = ApiKeys(["a-key-of-somebody"])
    assert "a-key-of-somebody" not in repr(vars(keys))


@pytest.mark.parametrize("keys", ["sha256:abc", "good,sha256:" + "g" * 64, "sha256:" + "A" * 64])
def test_hashes_that_are_none_are_refused_without_being_repeated(keys: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate({"api_keys": keys})
    assert "64 lower-case hex digits" in why_refused(refusal.value)
    assert keys not in str(refusal.value) + why_refused(refusal.value)


def test_requests_of_one_key_are_limited_and_others_go_on(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys="alpha,beta", rate_limit="5/hour") as api:
        alpha, beta = {"X-API-Key": "alpha"}, {"Authorization": "Bearer beta"}
        assert [api.client.get("/images/", headers=alpha).status_code for _ in range(7)] == [200] * 5 + [429] * 2
        refused = api.client.post("/images/", headers=alpha, files={"file": disc_jpeg(1)})
        assert_problem(refused, 429)
        assert 0 < int(refused.headers["Retry-After"]) <= 3600
        assert api.client.get("/images/", headers=beta).status_code == 200
        assert {api.client.get(path, headers=alpha).status_code for path in ("/health", "/ready") * 20} == {200}


def test_guessing_keys_is_limited(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys="alpha", rate_limit="5/hour", trusted_proxies=1) as api:

        def guess(number: int, address: str) -> int:
            headers = {"X-API-Key": f"guess {number}", "X-Forwarded-For": address}
            status: int = api.client.get("/images/", headers=headers).status_code
            return status

        assert [guess(number, "192.0.2.1") for number in range(7)] == [401] * 5 + [429] * 2
        # What a client writes itself stands before what the proxy adds.
        assert guess(7, "198.51.100.9, 192.0.2.1") == 429
        assert guess(8, "192.0.2.2") == 401
        assert api.client.get("/images/", headers={"X-API-Key": "alpha"}).status_code == 200


def test_a_limit_ends_with_its_time(tmp_path: Path) -> None:
    with serving(tmp_path, rate_limit="2/second") as api:
        wait_until(lambda: api.client.get("/images/").status_code == 429)
        wait_until(lambda: api.client.get("/images/").status_code == 200)


@pytest.mark.parametrize(
    ("forwarded_for", "trusted", "address"),
    [
        ("192.0.2.1", 0, NO_ADDRESS),
        ("", 1, NO_ADDRESS),
        ("192.0.2.1", 1, "192.0.2.1"),
        ("198.51.100.1, 192.0.2.1", 1, "192.0.2.1"),
        ("198.51.100.1,192.0.2.1", 2, "198.51.100.1"),
        ("192.0.2.1", 2, NO_ADDRESS),
        ("2001:db8:1:2:3:4:5:6", 1, "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", 1, "192.0.2.1"),
        ("192.0.2.1:1234", 1, "192.0.2.1:1234"),
        ("x" * 10_000, 1, "x" * 64),
    ],
)
def test_addresses_are_what_trusted_proxies_say(forwarded_for: str, trusted: int, address: str) -> None:
    assert client_address(forwarded_for, trusted) == address


@pytest.mark.parametrize("rate", ["0/minute", "5", "5/fortnight", "5 per minute; 1/second", "-1/hour", ""])
def test_rates_that_are_none_are_refused(rate: str) -> None:
    with pytest.raises(ValidationError, match="rate_limit"):
        Settings.model_validate({"rate_limit": rate})


@pytest.mark.parametrize("unit", ["second", "minute", "hour", "day"])
def test_every_rate_that_settings_take_is_one(unit: str) -> None:
    rate = Settings.model_validate({"rate_limit": f"7/{unit}"}).rate_limit
    assert rate is not None
    assert RateLimiter(rate)._item.amount == 7
