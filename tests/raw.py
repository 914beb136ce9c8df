"""Requests as bytes on a socket, for those that no HTTP client would send."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

_TIMEOUT_S = 60.0


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection to a service, closed when left."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=_TIMEOUT_S) as connection:
        yield connection


def said(url: str, request: bytes, quiet_s: float, is_enough: Callable[[bytes], bool] = lambda _: False) -> bytes:
    """All that is answered to these bytes.

    Args:
        quiet_s: When nothing came for so long, that was all.
        is_enough: Of what came so far: whether there is nothing to wait for.
    """
    with connected(url) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was read
            connection.sendall(request)
        connection.settimeout(quiet_s)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while not is_enough(received) and (more := connection.recv(65536)):
                received += more
    return received
