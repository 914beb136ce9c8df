"""Requests that are not what HTTP, forms and addresses should be: refused or understood, and nothing else."""

import asyncio
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from ray.serve._private.constants import (
    SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
    SERVE_MULTIPLEXED_MODEL_ID,
    SERVE_SESSION_ID,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from circles.detectors.encoded import EncodedDetector
from circles.geometry import Circle
from deployments.async_detectors import InProcessDetector
from deployments.middleware import proxy_middlewares
from tests.api.test_errors import assert_problem
from tests.fakes import FixedDetector
from tests.pictures import disc_jpeg
from tests.raw import said
from tests.running import RunningApi, running_api, settings_in

PICTURE = disc_jpeg(1)
BOUNDARY = "frontier"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("requests")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningApi]:
    detector = EncodedDetector(FixedDetector((Circle(90, 110, 42), 0.9)), 10**7, min_score=0.1)
    with running_api(settings_in(folder / "data"), InProcessDetector(detector)) as api:
        yield api


@pytest.fixture
def api(running: RunningApi) -> Iterator[RunningApi]:
    """The service; whatever a test did to it, it goes on."""
    yield running
    answer = running.client.post("/images/", files={"file": ("after.jpg", disc_jpeg(2))})
    assert answer.status_code in (200, 201)


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.jpg"', more: str = "") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{more}\r\n"
    return head.encode(errors="surrogateescape") + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FIELD = 'form-data; name="x"'


def send(api: RunningApi, body: bytes, content_type: str = TYPE) -> httpx2.Response:
    return api.client.post("/images/", content=body, headers={b"Content-Type": content_type.encode("latin-1")})


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(part(PICTURE) + END, "multipart/form-data", id="no boundary"),
        pytest.param(part(PICTURE) + END, "multipart/form-data; boundary=", id="empty boundary"),
        pytest.param(part(PICTURE) + END, "multipart/form-data; boundary=other", id="another boundary"),
        pytest.param(part(PICTURE) + END, "multipart/form-data; boundary=" + "b" * 4000, id="boundary of 4,000"),
        pytest.param(part(PICTURE) + END, 'multipart/form-data; boundary="', id="boundary that is a quote"),
        pytest.param(part(PICTURE) + END, "multipart/form-data; boundary=é", id="é"),
        pytest.param(b"", TYPE, id="no body"),
        pytest.param(END, TYPE, id="no parts"),
        pytest.param(b"\r\n" * 100_000, TYPE, id="line ends"),
        pytest.param(f"--{BOUNDARY}".encode() * 10_000, TYPE, id="boundaries alone"),
        pytest.param(part(PICTURE)[:-40], TYPE, id="part that does not end"),
        pytest.param(part(PICTURE, "form-data") + END, TYPE, id="no name"),
        pytest.param(part(PICTURE, 'attachment; name="file"') + END, TYPE, id="no file name"),
        pytest.param(part(PICTURE, 'form-data; name="FILE"; filename="a"') + END, TYPE, id="another field"),
        pytest.param(part(b"x", FIELD) * 5000 + END, TYPE, id="5,000 fields"),
        pytest.param(part(PICTURE) * 2 + END, TYPE, id="two files"),
        pytest.param(part(b"x") * 5000 + END, TYPE, id="5,000 files"),
        pytest.param(part(b"x" * 2**21, FIELD) + part(PICTURE) + END, TYPE, id="field of 2 MB"),
        pytest.param(part(PICTURE, more="X: " + "y" * 2**20 + "\r\n") + END, TYPE, id="header of 1 MB"),
        pytest.param(part(PICTURE, more="X: y\r\n" * 50_000) + END, TYPE, id="50,000 headers"),
        pytest.param(part(PICTURE, more=": \r\n") + END, TYPE, id="header without a name"),
        pytest.param(part(PICTURE, more="no colon\r\n") + END, TYPE, id="header without a colon"),
        pytest.param(part(PICTURE, more="\0: \0\r\n") + END, TYPE, id="NUL in a header"),
        pytest.param(
            part(part(PICTURE) + END, more=f"Content-Type: multipart/mixed; boundary={BOUNDARY}\r\n") + END,
            TYPE,
            id="form in a form",
        ),
    ],
)
def test_forms_that_are_none_are_refused(api: RunningApi, body: bytes, content_type: str) -> None:
    response = send(api, body, content_type)
    assert response.status_code in (400, 413, 415), response.text
    assert_problem(response, response.status_code)


NAMES = [
    pytest.param("../../../../tmp/escaped.jpg", id="traversal"),
    pytest.param("..\\..\\escaped.jpg", id="backslashes"),
    pytest.param("/etc/passwd", id="absolute"),
    pytest.param("a\0b.jpg", id="NUL"),
    pytest.param("%00%2e%2e%2f.jpg", id="percent"),
    pytest.param("\u202egpj.exe", id="right to left"),
    pytest.param("e\u0301" * 300, id="300 combining"),
    pytest.param("\U0001f4a3\ufeff\u2028", id="beyond the BMP"),
    pytest.param("\udcff\udcfe\udc80.jpg", id="not UTF-8"),
    pytest.param("n" * 30_000, id="30,000 letters"),
    pytest.param("<script>alert(1)</script>.jpg", id="HTML"),
    pytest.param("'; DROP TABLE images; --", id="SQL"),
    pytest.param("CON", id="device"),
    pytest.param(".", id="dot"),
    pytest.param(" ", id="blank"),
]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_are_words_and_nothing_more(api: RunningApi, folder: Path, name: str) -> None:
    picture = disc_jpeg(zlib.crc32(name.encode(errors="surrogateescape")) % 10**6 + 10)
    response = send(api, part(picture, f'form-data; name="file"; filename="{name}"') + END)
    if response.status_code == 400:  # a NUL
        assert_problem(response, 400)
        return
    assert response.status_code == 201, response.text
    assert response.headers["Content-Type"] == "application/json"
    told = response.json()["filename"]
    assert len(told) <= 255
    assert "\0" not in told
    content = api.client.get(f"{response.headers['Location']}/content")
    assert content.content == picture
    assert content.headers["Content-Type"] == "image/jpeg"
    assert content.headers["X-Content-Type-Options"] == "nosniff"
    assert {path.name for path in folder.iterdir()} == {"data"}
    assert not list(folder.rglob("*escaped*"))
    assert not Path("/tmp/escaped.jpg").exists()


@pytest.mark.parametrize(
    "content_type",
    [
        *(f"{TYPE}; charset={codec}" for codec in ("punycode", "utf-7", "undefined", "utf-16", "rot13", "é")),
        f'multipart/form-data; charset=utf-7; boundary="{BOUNDARY}"',
    ],
)
def test_charset_of_a_form_is_no_codec_of_pythons(api: RunningApi, content_type: str) -> None:
    """Punycode takes quadratic time, and UTF-7 has surrogates, which no database takes."""
    response = send(api, part(PICTURE, 'form-data; name="file"; filename="+2AA-.jpg"') + END, content_type)
    assert response.status_code in (200, 201), response.text
    field = b"a" * 10**6  # most of a minute of Punycode
    assert send(api, part(field, FIELD) + part(PICTURE) + END, content_type).status_code == 200


def test_name_is_told_as_it_was_sent_whatever_charset_is_claimed(api: RunningApi) -> None:
    body = part(disc_jpeg(3), 'form-data; name="file"; filename="+2AA-é.jpg"') + END
    assert send(api, body, f"{TYPE}; charset=utf-7").json()["filename"] == "+2AA-é.jpg"


@pytest.mark.parametrize(
    "path",
    [
        "/images/../../../etc/passwd",
        "/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/images/..%5c..%5cetc",
        "/images/%00",
        "/images/%0d%0aSet-Cookie:a=b",
        "/images/%ff%fe",
        "/images/%zz",
        "/images/%F0%9F%92%A3/content",
        "/images/" + "a" * 30_000,
        "/images/" + "a/" * 5_000,
        "/images/" + "0" * 63 + "%00/objects",
        "/images/' OR 1=1 --/objects/x",
        "/static/docs/../../../etc/passwd",
        "/static/docs/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/%00:predict",
        "/v2/models/..%2f..",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_paths_lead_nowhere_else(api: RunningApi, method: str, path: str) -> None:
    answer = _raw(
        api.url, f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.status in (400, 401, 404, 405), answer
    assert b"root:" not in answer.body
    assert b"Set-Cookie" not in answer.head


@pytest.mark.parametrize("path", ["/nope/", "/images/", "/v2/models/"])
def test_long_paths_are_not_repeated(api: RunningApi, path: str) -> None:
    response = api.client.get(path + "a" * 30_000)
    assert response.status_code == 404
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    "query",
    [
        *("limit=1e999", "limit=99999999999999999999999", "limit=%00", "limit=-1", "limit=1&limit=x", "limit=٣٣٣٣"),
        *("min_score=nan", "min_score=inf", "min_score=1e-999999", "min_score=" + "9" * 5000),
        *("cursor=%00", "cursor=%ff", "cursor=" + "A" * 20_000, "cursor=WyJhIiwgMV0=", "cursor=W1tbW1tb"),
        *("status=%00", "status=done%00"),
    ],
)
def test_query_values_are_checked(api: RunningApi, query: str) -> None:
    response = api.client.get(f"/images/?{query}")
    assert response.status_code in (200, 422), response.text
    if response.status_code == 422:
        assert_problem(response, 422)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Content-Type": "image/"}, id="half a type"),
        pytest.param({"Content-Type": "image/jpeg;" + "a=b;" * 5000}, id="5,000 parameters"),
        pytest.param({"Content-Type": "IMAGE/JPEG", "Prefer": "respond-async," * 1000}, id="1,000 preferences"),
        pytest.param({"Content-Type": "image/jpeg", "Prefer": "\xff"}, id="latin preference"),
        pytest.param({"Content-Type": "image/jpeg", "If-None-Match": '"' * 30_000}, id="quotes"),
        pytest.param({"Content-Type": "image/jpeg", "X-Request-ID": "x" * 30_000}, id="30,000 of a request id"),
        pytest.param({"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, id="gzip that is none"),
        pytest.param({"Content-Type": "image/jpeg", "X-Forwarded-Prefix": "//evil"}, id="forwarded"),
    ],
)
def test_headers_change_nothing(api: RunningApi, headers: dict[str, str]) -> None:
    sent = {key.encode(): value.encode("latin-1") for key, value in headers.items()}
    response = api.client.post("/images/", content=PICTURE, headers=sent)
    assert response.status_code in (200, 201, 202), response.text
    assert response.headers["Location"].startswith("/images/")
    assert len(response.headers["X-Request-ID"]) < 200


@pytest.mark.parametrize(
    "header",
    [
        SERVE_SESSION_ID,
        SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        SERVE_MULTIPLEXED_MODEL_ID,
        SERVE_MULTIPLEXED_MODEL_ID.replace("_", "-"),
    ],
)
def test_serve_is_told_nothing_by_clients(header: str) -> None:
    """It would fail at what is no text, and end a request in the time that it is told."""
    passed: list[tuple[bytes, bytes]] = []

    async def serve(scope: Scope, _receive: Receive, _send: Send) -> None:
        passed.extend(scope["headers"])

    async def receive() -> Message:
        return {}

    async def send(_: Message) -> None:
        pass

    async def ask() -> None:
        app: ASGIApp = serve
        for middleware in proxy_middlewares():
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        await app({"type": "http", "headers": [(header.encode(), b"\xff"), (b"accept", b"*/*")]}, receive, send)

    asyncio.run(ask())
    assert passed == [(b"accept", b"*/*")]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("Content-Length: -1", id="negative length"),
        pytest.param("Content-Length: 1e3", id="length in words"),
        pytest.param("Content-Length: 10\r\nContent-Length: 20", id="two lengths"),
        pytest.param("Content-Length: 99999999999999999999999999", id="length beyond 64 bits"),
        pytest.param("Content-Length: 5\r\nTransfer-Encoding: chunked", id="length and chunks"),
        pytest.param("Transfer-Encoding: gzip, chunked", id="unknown coding"),
        pytest.param("Transfer-Encoding: chunked", id="chunk of no size"),
        pytest.param("Transfer-Encoding:\tchunked\r\n X: y", id="folded header"),
        pytest.param("Bad Header: x", id="blank in a name"),
        pytest.param("X: " + "y" * 200_000, id="header of 200 kB"),
        pytest.param("X: y\r\n" * 20_000 + "Z: z", id="20,000 headers"),
    ],
)
def test_messages_that_are_no_http_are_refused(api: RunningApi, head: str) -> None:
    request = f"POST /images/ HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n{head}\r\n\r\nzz\r\nnonsense\r\n\r\n"
    answer = _raw(api.url, request.encode())
    assert 400 <= answer.status < 500, answer
    assert b"Traceback" not in answer.body


class _Raw:
    """The first answer on a connection."""

    def __init__(self, received: bytes) -> None:
        self.head, _, self.body = received.partition(b"\r\n\r\n")
        self.status = int(self.head.split()[1]) if self.head.startswith(b"HTTP/1.1 ") else 0

    def __repr__(self) -> str:
        return f"{self.head[:300]!r} {self.body[:300]!r}"


def _raw(url: str, request: bytes) -> _Raw:
    """What is answered to these bytes."""
    return _Raw(said(url, request, 5, lambda received: b"\r\n\r\n" in received))
