"""Every way to be wrong, and that each is told as a problem document with a request id."""

import contextlib
import hashlib
import socket
import ssl
import struct
import zlib
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.pictures import disc_jpeg, encode, two_discs


def assert_problem(response: httpx2.Response, status: int, detail: str = "") -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, object] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "request_id"}
    assert body["status"] == status
    assert response.headers.get_list("X-Request-ID") == [body["request_id"]]
    assert detail in str(body["detail"])
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    return body


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, and that has next to no data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def send_file(client: httpx2.Client, image_bytes: bytes) -> httpx2.Response:
    return client.post("/images/", files={"file": ("x.jpg", image_bytes)})


@pytest.mark.parametrize(
    ("image_bytes", "status", "detail"),
    [
        pytest.param(b"", 400, "no bytes", id="empty"),
        pytest.param(b"hello, this is text\n" * 10, 415, "accepted format", id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "accepted format", id="svg"),
        pytest.param(b"%PDF-1.7\n", 415, "accepted format", id="pdf"),
        pytest.param(disc_jpeg(1)[:-2000], 422, "ends early", id="truncated JPEG"),
        pytest.param(disc_jpeg(1)[:100], 422, "", id="JPEG of 100 bytes"),
        pytest.param(encode(two_discs(1).image, "PNG")[:-2000], 422, "damaged or ends early", id="truncated PNG"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\0" * 100, 422, "header", id="PNG signature, then zeros"),
        pytest.param(png_of(40_000, 40_000), 422, "40000 x 40000", id="40,000 x 40,000 px"),
        pytest.param(png_of(100, 100), 422, "damaged", id="PNG without pixel data"),
    ],
)
def test_bad_files(client: httpx2.Client, image_bytes: bytes, status: int, detail: str) -> None:
    assert_problem(send_file(client, image_bytes), status, detail)


def test_refused_files_leave_no_image(client: httpx2.Client) -> None:
    broken = disc_jpeg(2)[:-1500]
    assert_problem(send_file(client, broken), 422)
    assert_problem(client.get(f"/images/{hashlib.sha256(broken).hexdigest()}"), 404)


def test_missing_field(client: httpx2.Client) -> None:
    assert_problem(client.post("/images/", files={"picture": disc_jpeg(1)}), 400, "'file'")
    assert_problem(client.post("/images/", files={"file": (None, "text")}), 400, "'file'")
    assert_problem(client.post("/images/"), 400)


def test_other_content_types(client: httpx2.Client) -> None:
    assert_problem(client.post("/images/", json={"file": "x"}), 415, "application/json")
    assert_problem(
        client.post("/images/", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400, "boundary"
    )
    assert_problem(client.post("/images/batch", json={}), 415)
    assert_problem(client.post("/images/batch", files={"other": b"x"}), 400, "'files'")
    too_many = [("files", (f"{number}.jpg", b"x")) for number in range(65)]
    assert_problem(client.post("/images/batch", files=too_many), 400, "64")


def answer_to_unfinished(service_url: str, head: str, body: bytes) -> str:
    """The first of the answer to a request whose body stops before its end, while the connection stays open."""
    address = urlsplit(service_url)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))
        if address.scheme == "https":
            context = ssl.create_default_context()  # trusts SSL_CERT_FILE, as the other clients do
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=address.hostname))
        connection.sendall(f"POST /images/ HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n\r\n".encode() + body)
        return connection.recv(65536).decode()


def test_announced_body_is_refused_unread(service_url: str) -> None:
    """A 100 MB body is announced, none of it is sent, and the answer comes all the same."""
    answer = answer_to_unfinished(service_url, "Content-Type: image/jpeg\r\nContent-Length: 100000000", b"")
    assert answer.startswith("HTTP/1.1 413 ")
    assert "application/problem+json" in answer


def test_chunked_body_is_refused_as_soon_as_it_is_too_large(service_url: str) -> None:
    """A body that announces no size is refused at the limit, though its end never comes."""
    chunk = b"%x\r\n%s\r\n" % (2**20, b"\xff" * 2**20)
    answer = answer_to_unfinished(service_url, "Content-Type: image/jpeg\r\nTransfer-Encoding: chunked", chunk * 26)
    assert answer.startswith("HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "path", ["/images/nope", f"/images/{'0' * 64}", "/images/nope/objects", "/nope", "/api/v1/nope"]
)
def test_unknown_ids_and_paths(client: httpx2.Client, path: str) -> None:
    assert_problem(client.get(path), 404)


def test_unknown_object_of_a_known_image(client: httpx2.Client) -> None:
    location = send_file(client, disc_jpeg(3)).headers["Location"]
    assert_problem(client.get(f"{location}/objects/nope"), 404, "nope")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/images/", "GET, HEAD, POST"),
        ("DELETE", "/images", "GET, HEAD, POST"),
        ("POST", "/api/v1/images/abc", "GET, HEAD, DELETE"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/static/docs/swagger-ui.css", "GET, HEAD"),
    ],
)
def test_wrong_methods(client: httpx2.Client, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert_problem(response, 405, method)
    assert response.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/images", 200), ("/images/nope", 404), ("/docs", 200)]
)
def test_head_is_get_without_the_body(client: httpx2.Client, path: str, status: int) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (status, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=nope",
        "cursor=bm9wZQ==",
        "cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzIzOjU5IiwiYSJd",
        "status=nope",
        "min_score=2",
        "min_score=x",
    ],
)
def test_bad_query_values(client: httpx2.Client, query: str) -> None:
    assert_problem(client.get(f"/images/?{query}"), 422, query.partition("=")[0])


@pytest.mark.parametrize("value", [b"\xff", b"0.001"])
@pytest.mark.parametrize(
    "name", ["X-Session-Id", "X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "Serve-Multiplexed-Model-Id"]
)
def test_headers_that_serve_would_read_change_nothing(client: httpx2.Client, name: str, value: bytes) -> None:
    assert_problem(client.get("/images/nope", headers={name.encode(): value}), 404)


def test_request_id_is_the_clients_own(client: httpx2.Client) -> None:
    for path in ("/health", "/nope"):
        response = client.get(path, headers={"X-Request-ID": "my-request.1"})
        assert response.headers.get_list("X-Request-ID") == ["my-request.1"]
    assert response.json()["request_id"] == "my-request.1"


def test_request_id_is_made_where_none_is_sent(client: httpx2.Client) -> None:
    ids = {client.get("/health").headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3


def test_insane_request_id_is_not_taken_for_ours(client: httpx2.Client) -> None:
    response = client.get("/nope", headers={"X-Request-ID": "a b<script>"})
    request_id = response.json()["request_id"]
    assert "<" not in request_id
    assert response.headers.get_list("X-Request-ID") == [request_id]


@pytest.mark.parametrize("second", ["a b<script>", "\xff", "also.sane"])
def test_of_several_request_ids_none_slips_past(client: httpx2.Client, second: str) -> None:
    sent = [(b"X-Request-ID", b"sane"), (b"X-Request-ID", second.encode("latin-1"))]
    response = client.get("/nope", headers=sent)
    assert_problem(response, 404)
    assert response.json()["request_id"] != second
