"""What the service returns is never run by a browser, and read by pages of other origins only where that is wanted."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Error
from pydantic import ValidationError

from circles.settings import Settings
from deployments.browsers import NOTHING
from tests.api.test_errors import assert_problem
from tests.fakes import FixedDetector, GatedDetector
from tests.pictures import disc_jpeg
from tests.running import RunningApi, running_api, settings_in

PAGE = "https://app.example.org"


def serving(folder: Path, **settings: Any) -> Any:
    return running_api(settings_in(folder, **settings), GatedDetector(FixedDetector()))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with serving(tmp_path_factory.mktemp("browsers")) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    """With pages of one other origin."""
    with serving(
        tmp_path_factory.mktemp("shared"), api_keys="alpha", cors_origins=f"{PAGE}, http://localhost:3000"
    ) as running:
        yield running


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/ready", "/", "/config", "/images/", "/images/unknown", "/nowhere", "/openapi.json", "/v2"),
        *("/images/?limit=x", "/docs", "/docs/oauth2-redirect", "/static/docs/swagger-ui-bundle.js", "/static/docs/x"),
    ],
)
def test_every_answer_tells_browsers_what_to_make_of_it(api: RunningApi, path: str) -> None:
    headers = api.client.get(path).headers
    assert headers.get_list("X-Content-Type-Options") == ["nosniff"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    (policy,) = headers.get_list("Content-Security-Policy")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'self' 'unsafe-inline'" not in policy
    assert (policy == NOTHING) == (path not in ("/", "/docs"))
    assert "Access-Control-Allow-Origin" not in headers


HTML = b"<html><script>alert(1)</script></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("<script>alert(1)</script>.html", "text/html"),
        ("a.svg", "image/svg+xml"),
        ('a"; filename="b.html', "image/jpeg"),
        ("a\r\nContent-Type: text/html\r\n\r\n<script>", "image/jpeg"),
        ("a.js", "text/javascript"),
        ("\u202egpj.lmth", "application/xhtml+xml"),
    ],
)
def test_pictures_come_back_as_pictures(api: RunningApi, name: str, claimed: str) -> None:
    """Whatever they were called, and claimed to be; with HTML behind the picture's end."""
    picture = disc_jpeg(zlib.crc32(name.encode())) + HTML
    uploaded = api.client.post("/images/", files={"file": (name, picture, claimed)})
    assert uploaded.status_code == 201, uploaded.text
    assert uploaded.headers["Content-Type"] == "application/json"
    image_id = uploaded.json()["image_id"]
    content = api.client.get(f"/images/{image_id}/content")
    assert content.content == picture
    assert content.headers["Content-Type"] == "image/jpeg"
    assert content.headers["Content-Disposition"] == f'inline; filename="{image_id[:16]}.jpeg"'
    assert content.headers["Content-Security-Policy"] == NOTHING
    assert api.client.get(f"/images/{image_id}/annotated").headers["Content-Type"] == "image/jpeg"


@pytest.mark.parametrize("document", [SVG, HTML, b"GIF89a/*" + HTML], ids=["svg", "html", "gif alone in name"])
@pytest.mark.parametrize("claimed", ["image/svg+xml", "image/jpeg"])
def test_documents_are_no_pictures(api: RunningApi, document: bytes, claimed: str) -> None:
    response = api.client.post("/images/", content=document, headers={"Content-Type": claimed})
    assert response.status_code in (415, 422)
    assert_problem(response, response.status_code)


@pytest.mark.parametrize(
    "path", ["/<script>alert(1)</script>", "/images/<svg onload=alert(1)>", "/images/?status=<script>"]
)
def test_what_is_asked_comes_back_as_json(api: RunningApi, path: str) -> None:
    response = api.client.get(path)
    assert response.status_code in (404, 422)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["detail"]


def test_documentation_works_in_a_browser_under_its_policy(api: RunningApi, browser: Browser) -> None:
    """Nothing of the page is refused, and what is not of the page would be."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{api.url}/docs")
    page.get_by_text("/api/v1/images/{image_id}/content").first.wait_for()
    page.get_by_text("/health").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.get_by_text('"status": "ok"').first.wait_for()
    assert said == []
    with pytest.raises(Error, match="Content Security Policy"):
        page.add_script_tag(content="window.added = 1")


def test_pages_of_named_origins_may_ask(shared: RunningApi) -> None:
    preflight = shared.client.options(
        "/images/",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key, content-type, prefer",
        },
    )
    assert preflight.status_code == 200  # without a key, which browsers do not send here
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    asked = shared.client.get("/images/", headers={"Origin": PAGE, "X-API-Key": "alpha"})
    assert asked.status_code == 200
    refused = shared.client.get("/images/", headers={"Origin": PAGE})
    assert_problem(refused, 401)
    for response in (asked, refused):
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers
        assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example.org", "null", f"{PAGE}.evil.org", f"{PAGE}:444", "http://app.example.org"]
)
def test_pages_of_other_origins_may_not(shared: RunningApi, origin: str) -> None:
    asked = shared.client.get("/images/", headers={"Origin": origin, "X-API-Key": "alpha"})
    assert "Access-Control-Allow-Origin" not in asked.headers
    preflight = shared.client.options("/images/", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert_problem(preflight, 400)
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_no_origin_may_ask_by_default(api: RunningApi) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    preflight = api.client.options("/images/", headers=headers)
    assert_problem(preflight, 405)
    responses: list[httpx2.Response] = [preflight, api.client.get("/images/", headers=headers)]
    assert [name for response in responses for name in response.headers if "access-control" in name.lower()] == []


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_origins_change_nothing(tmp_path: Path, site: str) -> None:
    """A form, as a browser sends it for a page without asking first; the service's own page may."""
    settings = settings_in(tmp_path, cors_origins=PAGE)
    with running_api(settings, GatedDetector(FixedDetector())) as api:

        def upload(**headers: str) -> httpx2.Response:
            return api.client.post("/images/", files={"file": disc_jpeg(1)}, headers=headers)

        refused = upload(**{"Origin": "https://elsewhere.example", "Sec-Fetch-Site": site})
        assert_problem(refused, 403)
        assert api.client.get("/images/").json()["items"] == []
        assert upload(**{"Origin": PAGE, "Sec-Fetch-Site": site}).status_code == 201
        assert upload(**{"Origin": api.url, "Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_pages_change_nothing_over_plain_http_either(api: RunningApi) -> None:
    """There, browsers say no more than which page asks."""
    host = api.url.removeprefix("http://")
    for origin in (f"http://evil.{host}", "null", "http://[", "http://\N{FULLWIDTH SOLIDUS}"):
        refused = api.client.delete("/images/absent", headers={b"Origin": origin.encode()})
        assert_problem(refused, 403)
    for origin, status in ((api.url, 404), (f"HTTP://{host}", 404)):
        assert api.client.delete("/images/absent", headers={"Origin": origin}).status_code == status
    assert api.client.delete("/images/absent").status_code == 404  # no browser


@pytest.mark.parametrize(
    "origin",
    ["app.example.org", "https://app.example.org/", "https://me@app.org", "ftp://x", "https://A.org", "https://x:y"],
)
def test_origins_that_are_none_are_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings.model_validate({"cors_origins": f"{PAGE},{origin}"})
