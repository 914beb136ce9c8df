"""HAProxy's configuration, as Serve writes it and as it is run."""

import pytest

from serve_app.haproxy import hardened

WRITTEN = """global
    stats socket /tmp/haproxy-serve/1/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 502 /tmp/haproxy-serve/1/500.http
    errorfile 503 /tmp/haproxy-serve/1/500.http
    errorfile 504 /tmp/haproxy-serve/1/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
listen stats
  bind *:8404
  stats enable
"""


def test_less_of_it_is_open() -> None:
    run = hardened(WRITTEN)
    assert "mode 600 level admin" in run
    assert "bind 127.0.0.1:9101\n" in run
    assert "bind 127.0.0.1:8404\n" in run
    assert "defaults\n    timeout http-request 10s" in run
    assert hardened(run) == run


def test_metrics_are_where_http_is() -> None:
    run = hardened(WRITTEN.replace("bind 127.0.0.1:8000", "bind *:8000"))
    assert "bind *:9101\n" in run
    assert "bind 127.0.0.1:8404\n" in run


@pytest.mark.parametrize("line", ["bind :9101", "bind *:8404", "mode 666", "defaults", "bind 127.0.0.1:8000"])
def test_what_it_does_not_know_is_not_run(line: str) -> None:
    with pytest.raises(ValueError, match="instead of one"):
        hardened(WRITTEN.replace(line, "something else"))
