"""Raw clients: uploads as bytes on a socket, to be cut, dribbled or left half said."""

import socket
import struct

_BOUNDARY = "a-boundary"


def multipart_request(image_bytes: bytes) -> bytes:
    """A whole upload as a browser would send it: headers, and a multipart body."""
    body = (
        (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="coin.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + image_bytes
        + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )
    return _head(f"multipart/form-data; boundary={_BOUNDARY}", len(body)) + body


def plain_request(image_bytes: bytes) -> bytes:
    """A whole upload with the picture as its body."""
    return _head("image/jpeg", len(image_bytes)) + image_bytes


def _head(content_type: str, length: int) -> bytes:
    lines = ("POST /images/ HTTP/1.1", "Host: x", f"Content-Type: {content_type}", f"Content-Length: {length}")
    return "\r\n".join((*lines, "Connection: close", "", "")).encode()


def reset(connection: socket.socket) -> None:
    """Closes by a reset instead of an orderly end: what a client that crashed, or a network that broke, looks like."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def status_line(connection: socket.socket) -> str:
    """The first line of the answer; empty when the connection ended without one."""
    received = b""
    while b"\r\n" not in received:
        try:
            chunk = connection.recv(4096)
        except ConnectionResetError:
            return ""
        if not chunk:
            return ""
        received += chunk
    return received.partition(b"\r\n")[0].decode()
