"""Clients that send or take a byte now and then, to hold what others need: they are served as long as is fair."""

import asyncio
import contextlib
import io
import re
import socket
import time
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image

from serve_app.haproxy import REQUEST_TIMEOUT_S
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.security.conftest import CLIENT_TIMEOUT_S, KEY, UPLOAD_TIMEOUT_S, Guarded

pytestmark = pytest.mark.serve

SLACK_S = 8  # of a busy machine
HEADERS = {"X-API-Key": KEY}


async def _dripped(url: str, head: bytes) -> tuple[float, bytes]:
    """Sends one byte after the other behind this; how many seconds that goes on, and the first line of the answer."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    started = time.monotonic()
    answer = b""
    # Read all along: an answer that nobody waited for would be lost with a connection that is reset after it.
    reading = asyncio.create_task(reader.readline())
    with contextlib.suppress(ConnectionError):
        writer.write(head)
        while not reading.done():
            writer.write(b"a")
            await writer.drain()
            await asyncio.wait([reading], timeout=0.5)
    with contextlib.suppress(ConnectionError):
        answer = await reading
    writer.close()
    return time.monotonic() - started, answer


async def _all_dripped(url: str, heads: list[bytes]) -> tuple[list[tuple[float, bytes]], int]:
    """What becomes of all of them at once; and how many requests of another client are answered meanwhile."""
    dripping = asyncio.gather(*(_dripped(url, head) for head in heads))
    answered = 0
    async with httpx2.AsyncClient(base_url=url, timeout=10, headers=HEADERS) as client:
        while not dripping.done():
            assert (await client.get("/config")).status_code == 200
            upload = await client.post("/images/", files={"file": disc_jpeg(answered % 5)})
            assert upload.status_code in (200, 201)
            answered += 1
            await asyncio.wait([dripping], timeout=1)
    return await dripping, answered


def test_headers_have_to_come_in_time(guarded: Guarded) -> None:
    """Of some that get as far as a header, as the first line, as nothing."""
    heads = [b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"GET /", b""]
    ended, answered = asyncio.run(_all_dripped(guarded.serve.url, 100 * heads))
    assert max(seconds for seconds, _ in ended) < REQUEST_TIMEOUT_S + SLACK_S
    # An empty answer: it was hung up on while it wrote.
    assert {answer.partition(b" ")[2][:3] for _, answer in ended} <= {b"408", b""}
    assert answered >= 3


def test_bodies_have_to_come_in_time(guarded: Guarded) -> None:
    """Fewer than MAX_IN_FLIGHT, which is how many may upload at once."""
    head = b"POST /images/ HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 100000\r\n"
    head += f"X-API-Key: {KEY}\r\n\r\n".encode()
    ended, answered = asyncio.run(_all_dripped(guarded.serve.url, 40 * [head]))
    assert max(seconds for seconds, _ in ended) < UPLOAD_TIMEOUT_S + SLACK_S
    assert {answer.split()[1] for _, answer in ended} == {b"408"}
    assert answered >= 3


def test_who_does_not_read_is_hung_up_on(guarded: Guarded) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (2000, 2000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    with guarded.serve.client() as client:
        location = client.post("/images/", headers=HEADERS, files={"file": file.getvalue()}).headers["Location"]
    before = _settled_sessions(guarded)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(_unread(guarded.serve.url, f"{location}/content"))
        wait_until(lambda: _sessions(guarded) >= before + 20)
        wait_until(lambda: _sessions(guarded) <= before, CLIENT_TIMEOUT_S + SLACK_S)
        with guarded.serve.client() as client:
            assert client.get(f"{location}/content", headers=HEADERS).content == file.getvalue()


@contextlib.contextmanager
def _unread(url: str, path: str) -> Iterator[None]:
    """A connection whose answer, of 12 MB, nobody takes."""
    address = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n\r\n".encode())
        yield


def _settled_sessions(guarded: Guarded) -> int:
    """As ``_sessions``, once those are no longer counted that have just been closed."""
    looks: deque[int] = deque(maxlen=10)

    def have_settled() -> bool:
        looks.append(_sessions(guarded))
        return len(looks) == looks.maxlen and len(set(looks)) == 1

    wait_until(have_settled, period_s=0.1)
    return looks[-1]


def _sessions(guarded: Guarded) -> int:
    """Connections of clients to HAProxy, by what it says itself."""
    text = httpx2.get(guarded.metrics_url).text
    (count,) = re.findall(r'^haproxy_frontend_current_sessions\{proxy="http_frontend"\} (\d+)$', text, re.MULTILINE)
    return int(count)
