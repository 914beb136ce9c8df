"""One request that two parsers may take for two: whatever the proxy lets through, the service sees once."""

import re
import uuid

import httpx2
import pytest

from tests.raw import said
from tests.running import wait_until
from tests.security.conftest import OTHER_KEY, Guarded

pytestmark = pytest.mark.serve

KEY_LINE = f"X-API-Key: {OTHER_KEY}\r\n".encode()
POST = b"POST /images/ HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n" + KEY_LINE
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HIDDEN = b"GET /hidden-%s HTTP/1.1\r\nHost: x\r\n" + KEY_LINE + b"\r\n"
"""The request that nobody should see; %s is a word of its own."""

OBFUSCATED = {
    "unknown coding": b"Transfer-Encoding: xchunked",
    "blank before the colon": b"Transfer-Encoding : chunked",
    "tab": b"Transfer-Encoding:\tchunked",
    "vertical tab": b"Transfer-Encoding:\x0bchunked",
    "quoted": b'Transfer-Encoding: "chunked"',
    "folded": b"X: x\r\n Transfer-Encoding: chunked",
    "folded value": b"Transfer-Encoding:\r\n chunked",
    "identity first": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "identity last": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "list": b"Transfer-Encoding: chunked, identity",
    "another case": b"tRANSFER-eNCODING: CHUNKED",
    "NUL": b"Transfer-Encoding: chunked\0",
    "after a bare LF": b"X: y\nTransfer-Encoding: chunked",
    "after a bare CR": b"X: y\rTransfer-Encoding: chunked",
    "underscore": b"Transfer_Encoding: chunked",
}
LENGTHS = [b"+3", b"-1", b"0x3", b"3 3", b"3.0", b"3_0", b"3, 4", b"3\x0b", b"", b"\xb3"]
CHUNK_SIZES = [b"-1", b"0x3", b"ffffffffffffffff3", b"3 3", b"+3", b"g", b"", b"3;a=b\nx", b"3\r"]


def smuggled(inner: bytes) -> dict[str, bytes]:
    """Requests that hold another one, by how it is hidden."""
    ended = b"0\r\n\r\n" + inner
    both = b"Content-Length: %d\r\n"
    found = {
        "CL.TE": POST + both % len(ended) + b"Transfer-Encoding: chunked\r\n\r\n" + ended,
        "TE.CL": POST + both % 4 + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n",
        "two lengths": POST + b"Content-Length: 3\r\nContent-Length: %d\r\n\r\nabc" % (3 + len(inner)) + inner,
        "length with a blank before the colon": POST + b"Content-Length : %d\r\n\r\n" % len(inner) + inner,
        "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + ended,
        "chunks that end with LF": CHUNKED + b"3\nabc\n0\n\n" + inner,
        "body of a GET": b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner,
        "HTTP/1.0 pipelined": b"GET /health HTTP/1.0\r\n\r\n" + inner,
        "HTTP/0.9": b"GET /health\r\n" + inner,
        "another host in the target": b"GET http://other/health HTTP/1.1\r\nHost: x\r\n\r\n" + inner,
        "two hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + inner,
        "LF in the target": b"GET /health HTTP/1.1\nX: HTTP/1.1\r\nHost\r\n\r\n" + inner,
        "header of 40 kB": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n" + inner,
    }
    for name, line in OBFUSCATED.items():
        found[f"TE {name}"] = POST + both % len(ended) + line + b"\r\n\r\n" + ended
    for length in LENGTHS:
        found[f"length {length!r}"] = POST + b"Content-Length: " + length + b"\r\n\r\nabc" + inner
    for size in CHUNK_SIZES:
        found[f"chunk {size!r}"] = CHUNKED + size + b"\r\nabc\r\n0\r\n\r\n" + inner
    return found


@pytest.mark.parametrize("name", smuggled(b""))
def test_hidden_requests_are_never_seen(guarded: Guarded, name: str) -> None:
    word = uuid.uuid4().hex
    request = smuggled(HIDDEN % word.encode())[name]
    answers = _answers(guarded.serve.url, request)
    assert len(answers) <= 1, answers
    assert all(200 <= status < 500 for status in answers), answers
    # Whoever comes next is answered for what they asked, on whichever connection to a replica that goes.
    with guarded.serve.client() as client:
        for _ in range(3):
            request_id = uuid.uuid4().hex
            response = client.get("/config", headers={"X-API-Key": OTHER_KEY, "X-Request-ID": request_id})
            assert (response.status_code, response.headers["X-Request-ID"]) == (200, request_id)
            assert response.json()["mode"] == "real"
        _refused(client, guarded, f"after-{word}")
    assert f"/hidden-{word}" not in guarded.log_text("serve")


def test_hidden_requests_would_be_noticed(guarded: Guarded) -> None:
    """The same request, not hidden at all: two answers, and its line in the log."""
    word = uuid.uuid4().hex
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN % word.encode()
    assert _answers(guarded.serve.url, request, expected=2) == [200, 404]
    wait_until(lambda: f"/hidden-{word}" in guarded.log_text("serve"))


def _refused(client: httpx2.Client, guarded: Guarded, path: str) -> None:
    """Asks for what is not there, and waits until the log says so: what came before is in it, too."""
    assert client.get(f"/{path}", headers={"X-API-Key": OTHER_KEY}).status_code == 404
    wait_until(lambda: f"/{path}" in guarded.log_text("serve"))


def _answers(url: str, request: bytes, expected: int | None = None) -> list[int]:
    """The status codes of all that comes back, until nothing more does; or of so many, for which it waits longer."""
    quiet_s = 1 if expected is None else 30
    return _statuses(said(url, request, quiet_s, lambda received: len(_statuses(received)) == expected))


def _statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]
