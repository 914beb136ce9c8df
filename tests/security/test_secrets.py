"""Keys, passwords and credentials of a running service: nobody reads them anywhere."""

import contextlib
from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError

from circles.settings import Settings, why_refused
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.security.conftest import KEY, Guarded

HEADERS = {"X-API-Key": KEY}


@pytest.mark.serve
@pytest.mark.timeout(240)
def test_secrets_are_told_nowhere(guarded: Guarded) -> None:
    """Not by answers, also while database and bucket are away; not by metrics, nor by the control port, nor in logs."""
    told = ""
    with guarded.serve.client() as client:

        def ask(method: str, path: str, **request: object) -> httpx2.Response:
            nonlocal told
            response: httpx2.Response = client.request(method, path, **request)  # type: ignore[arg-type]
            told += f"{response.headers}{response.text}"
            return response

        assert (
            ask("GET", "/config", headers=HEADERS)
            .json()["database_url"]
            .startswith("postgresql+psycopg://circles:***@")
        )
        assert ask("GET", "/config", headers={"X-API-Key": "wrong"}).status_code == 401
        assert ask("GET", f"/nowhere?key={'x' * 10}", headers=HEADERS).status_code == 404
        location = ask("POST", "/images/", headers=HEADERS, files={"file": disc_jpeg(1)}).headers["Location"]
        guarded.bucket.stop(at_once=True)
        try:
            assert ask("POST", "/images/", headers=HEADERS, files={"file": disc_jpeg(99)}).status_code == 503
            assert ask("GET", f"{location}/content", headers=HEADERS).status_code >= 500
            wait_until(lambda: ask("GET", "/ready").status_code == 503)
        finally:
            guarded.bucket.start()
        guarded.database.stop(at_once=True)
        try:
            assert ask("GET", "/images/", headers=HEADERS).status_code == 503
            assert ask("POST", "/images/", headers=HEADERS, files={"file": disc_jpeg(98)}).status_code == 503
            wait_until(lambda: "database" in ask("GET", "/ready").text)
        finally:
            guarded.database.start()
        wait_until(lambda: ask("GET", "/ready").status_code == 200, 60)

    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    dashboard = guarded.serve.local.running().dashboard_url
    for path in ("/api/serve/applications/", "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1", "/api/jobs/"):
        told += httpx2.get(f"{dashboard}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=30).text
    for _, port, program in guarded.listeners():
        if "/haproxy" in program or "dashboard" in program or "monitor.py" in program:
            with contextlib.suppress(httpx2.TransportError):  # it speaks gRPC
                told += httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert "haproxy_frontend" in told
    assert "ray_" in told
    assert [secret for secret in guarded.secrets if secret in told] == []
    # The application's own lines are among them, of the failures above too.
    logged = guarded.log_text() + guarded.serve.local.log_path.read_text()
    assert "refused with 503" in logged
    assert [secret for secret in guarded.secrets if secret in logged] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"database_url": "postgresql+psycopg://me@db/circles?password=secret&sslpassword=secret"},
        {"database_url": "mysql+pymysql://me:secret@db/circles?ssl_key_password=secret&passwd=secret"},
        {"api_keys": "secret,other-secret"},
    ],
)
def test_settings_do_not_show_secrets(settings: dict[str, str]) -> None:
    made = Settings.model_validate(settings)
    assert "secret" not in f"{made!r} {made.public()}"


@pytest.mark.parametrize(
    "settings",
    [
        {"database_url": "postgresql+psycopg//me:secret@db"},
        {"database_url": "oracle://me:secret@db/x"},
        {"storage_url": "s3://key:secret@bucket/prefix"},
        {"api_keys": "sha256:secret"},
        {"model_server_url": "http://me:secret@host"},
    ],
)
def test_refusals_do_not_repeat_secrets(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate(settings)
    assert "secret" not in str(refusal.value) + why_refused(refusal.value)
