"""Clients that go away, dribble or fall silent, through the real proxy: others are served, and nothing stays behind."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import httpx2
import psutil
import pytest

from tests.chaos.raw import multipart_request, plain_request, reset, status_line
from tests.chaos.steady import steady_uploads
from tests.pictures import disc_jpeg
from tests.raw import connected
from tests.running import wait_until
from tests.serving import RunningServe, running_serve

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(300)]

ROOM = {"MAX_IN_FLIGHT": "8", "MAX_UPLOAD_BYTES": "32768", "DATABASE_POOL_SIZE": "2"}
"""Little, so that what is not given back is missed."""

SLOW_CLIENTS = 150
FD_SLACK = 16
"""Of open files and connections of a process: pools keep some. Each test cuts more uploads than that."""

_seeds = count(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    folder = tmp_path_factory.mktemp("clients")
    with running_serve(folder, DETECTOR_MAX_REPLICAS="1", **ROOM) as service:
        # Threads, and connections that are kept for the next requests, are there before anything is counted.
        cut_uploads(service, multipart_request, socket.socket.close)
        yield service


@pytest.fixture(autouse=True)
def nothing_is_left(service: RunningServe) -> Iterator[None]:
    """Afterwards there is room for uploads, no file is left, and no process has more open files than before."""
    before = open_files(service)
    yield
    wait_until(partial(is_there_room, service), timeout_s=30)
    wait_until(partial(are_files_closed, service, before), timeout_s=30)
    wait_until(partial(is_storage_well, service), timeout_s=30)


def open_files(service: RunningServe) -> dict[str, int]:
    """How many each process of the way in has open."""
    processes = {"Ingress": service.replica_processes("Ingress"), "HAProxy": service.haproxy_processes()}
    return {role: max(_num_fds(process) for process in its) for role, its in processes.items()}


def are_files_closed(service: RunningServe, before: dict[str, int]) -> bool:
    """Whether no process has more open than ``before``, or a few."""
    return all(now <= before[role] + FD_SLACK for role, now in open_files(service).items())


def _num_fds(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):  # an HAProxy that a reload replaced
        return int(process.num_fds())
    return 0


def is_there_room(service: RunningServe) -> bool:
    """Whether uploads are let in: the little room that there is would be taken by what cut ones left."""
    with service.client() as client:
        return client.post("/images/", files={"file": disc_jpeg(next(_seeds))}).status_code in (201, 202)


def is_storage_well(service: RunningServe) -> bool:
    check = subprocess.run(
        [sys.executable, "-m", "circles.storage", "check", "--deep"],
        env={**os.environ, **service.environment, "ORPHAN_GRACE_S": "0"},
        capture_output=True,
        check=False,
    )
    return check.returncode == 0


def cut_uploads(service: RunningServe, make: Callable[[bytes], bytes], leave: Callable[[socket.socket], None]) -> None:
    """Uploads that end after any number of bytes, and a whole one that never notices them.

    What was sent wholly may be kept or not: nobody waited for the answer.
    """
    whole = make(disc_jpeg(0))
    head = whole.index(b"\r\n\r\n") + 4
    sizes = {0, 1, head - 1, head, head + 1, len(whole) - 1, len(whole)}
    sizes |= set(range(16, head, 32)) | set(range(head, len(whole), 1024))
    for size in sorted(sizes):
        with connected(service.url) as connection:
            connection.sendall(make(disc_jpeg(next(_seeds)))[:size])
            leave(connection)
    with service.client() as client:
        assert client.post("/images/", files={"file": disc_jpeg(next(_seeds))}).status_code in (201, 202)


@pytest.mark.parametrize("make", [multipart_request, plain_request], ids=["multipart", "plain"])
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closed", "reset"])
def test_client_that_goes_away_anywhere_in_an_upload_leaves_nothing(
    service: RunningServe, make: Callable[[bytes], bytes], leave: Callable[[socket.socket], None]
) -> None:
    cut_uploads(service, make, leave)


def test_client_that_stops_sending_but_listens_is_answered(service: RunningServe) -> None:
    """A half-open connection: its end is known, so there is nothing to wait for."""
    with connected(service.url) as connection:
        connection.sendall(multipart_request(disc_jpeg(next(_seeds)))[:-100])
        connection.shutdown(socket.SHUT_WR)
        start = time.monotonic()
        line = status_line(connection)
        assert time.monotonic() - start < 30
        assert line == "" or line.split()[1] in ("400", "408")


def test_whole_upload_of_a_client_that_stops_sending_is_answered(service: RunningServe) -> None:
    """HAProxy takes the end of what it sends for a client that went away, unless the answer is there first."""
    with connected(service.url) as connection:
        connection.sendall(multipart_request(disc_jpeg(next(_seeds))))
        connection.shutdown(socket.SHUT_WR)
        line = status_line(connection)
        assert line == "" or line.split()[1] in ("201", "202", "400")


def test_a_hundred_slow_clients_hold_nobody_up(service: RunningServe) -> None:
    """Each sends a byte a second; others upload as ever."""
    is_over = threading.Event()

    def dribble(connections: list[socket.socket]) -> None:
        request = plain_request(disc_jpeg(0))
        head = request.index(b"\r\n\r\n") + 4
        for connection in connections:
            connection.sendall(request[:head])
        for position in count(head):
            if is_over.wait(1.0):
                return
            for connection in connections:
                with contextlib.suppress(OSError):  # refused meanwhile, as it may be
                    connection.sendall(request[position : position + 1])

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(service.url)) for _ in range(SLOW_CLIENTS)]
        dribbling = threading.Thread(target=dribble, args=(connections,))
        dribbling.start()
        try:
            wait_until(lambda: len(psutil.net_connections()) > SLOW_CLIENTS)
            with steady_uploads(service.url, first_seed=1_000_000, per_s=4, most_in_flight=6) as steady:
                wait_until(lambda: len(steady.answers) >= 40, timeout_s=60)
        finally:
            is_over.set()
            dribbling.join()
    assert not steady.refusals, f"{steady.failures} of {len(steady.answers)}: {steady.refusals}"
    assert steady.slowest_s < 10


def test_silent_connections_hold_nobody_up(service: RunningServe) -> None:
    with contextlib.ExitStack() as stack:
        for size in (0, 1, 20):
            for _ in range(50):
                connection = stack.enter_context(connected(service.url))
                connection.sendall(multipart_request(disc_jpeg(0))[:size])
        answer = httpx2.post(f"{service.url}/images/", files={"file": disc_jpeg(next(_seeds))}, timeout=30)
        assert answer.status_code in (201, 202)
