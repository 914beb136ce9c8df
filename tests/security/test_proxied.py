"""What `tests/hostile/test_requests.py` asks the replica, asked the proxy in front: it lets no more through."""

import uuid
from typing import Any

import httpx2
import pytest

from tests.hostile import test_requests as requests
from tests.pictures import disc_jpeg
from tests.security.conftest import OTHER_KEY, Guarded

pytestmark = pytest.mark.serve


def _cases(test: Any) -> list[Any]:
    """The first parameters of that test."""
    return list(test.pytestmark[-1].args[1])


def _text(case: Any) -> str:
    return str(case.values[0] if hasattr(case, "values") else case)


@pytest.mark.parametrize(
    "path", [_text(case) for case in _cases(requests.test_paths_lead_nowhere_else)], ids=lambda p: p[:30]
)
def test_paths_lead_nowhere_else(guarded: Guarded, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {OTHER_KEY}\r\nConnection: close\r\n\r\n"
    answer = requests._raw(guarded.serve.url, head.encode())
    assert answer.status in (400, 404, 405, 414), answer
    assert b"root:" not in answer.body
    assert b"Set-Cookie" not in answer.head


@pytest.mark.parametrize("case", _cases(requests.test_messages_that_are_no_http_are_refused))
def test_messages_that_are_no_http_are_refused(guarded: Guarded, case: str) -> None:
    request = f"POST /images/ HTTP/1.1\r\nHost: x\r\nX-API-Key: {OTHER_KEY}\r\n{case}\r\n\r\nzz\r\nnonsense\r\n\r\n"
    answer = requests._raw(guarded.serve.url, request.encode())
    assert 400 <= answer.status < 500, answer
    assert b"Traceback" not in answer.body


@pytest.mark.parametrize("name", requests.NAMES)
def test_file_names_are_words_and_nothing_more(guarded: Guarded, name: str) -> None:
    picture = disc_jpeg(uuid.uuid4().int % 10**6)
    disposition = f'form-data; name="file"; filename="{name}"'
    response = httpx2.post(
        f"{guarded.serve.url}/images/",
        content=requests.part(picture, disposition) + requests.END,
        headers={"Content-Type": requests.TYPE, "X-API-Key": OTHER_KEY},
        timeout=30,
    )
    assert response.status_code in (201, 400), response.text
    if response.status_code == 201:
        assert len(response.json()["filename"]) <= 255
        content = httpx2.get(
            f"{guarded.serve.url}{response.headers['Location']}/content", headers={"X-API-Key": OTHER_KEY}
        )
        assert (content.content, content.headers["Content-Type"]) == (picture, "image/jpeg")
        name_of_ours = f"{response.json()['image_id'][:16]}.jpeg"
        assert content.headers["Content-Disposition"] == f'inline; filename="{name_of_ours}"'


@pytest.mark.parametrize("size", [10_000, 40_000, 1_000_000])
@pytest.mark.parametrize("name", ["X", "Cookie", "X-Request-ID", "Authorization", "Prefer", "X-Forwarded-For"])
def test_large_headers_are_refused_or_mean_nothing(guarded: Guarded, name: str, size: int) -> None:
    head = f"GET /config HTTP/1.1\r\nHost: x\r\nX-API-Key: {OTHER_KEY}\r\nConnection: close\r\n"
    answer = requests._raw(guarded.serve.url, f"{head}{name}: {'y' * size}\r\n\r\n".encode())
    assert answer.status == (200 if size == 10_000 else 400), answer
    assert b"y" * 200 not in answer.head
