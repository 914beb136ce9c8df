"""A worker of Ray that is kept idle, for the next replica on this node.

Ray starts a process for a replica when one is wanted: some seconds of Python's imports, in which nobody answers, or the
first picture waits for a sleeping detector. An idle worker is taken at once. Ray has some when it starts, which Serve's
own actors take, and a worker that has run a task is not given to an actor any more. So one is asked for by a call of
the raylet's that has no name in Ray's public interface, ``PrestartWorkers``; where it fails, replicas start as slowly
as before.
"""

import contextlib
import logging
import os
import threading
import time

import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest  # type: ignore[attr-defined]  # generated
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

logger = logging.getLogger("ray.serve")

IDLE_TITLE = "ray::IDLE"
"""What a worker calls itself that nobody has taken yet."""

_PERIOD_S = 2.0
_LONGEST_PAUSE_S = 60.0
_TIMEOUT_S = 5.0
_KEPT_IDLE_S = 24 * 3600  # then Ray ends it unless a core is free, and another one is asked for
_STARTING = "default_worker.py"


def keep_spare_worker() -> None:
    """Looks after it from now on, in a thread that ends with this process, which is a worker of the same node."""
    threading.Thread(target=_keep, name="spare-worker", daemon=True).start()


def _keep() -> None:
    pause_s, has_failed = _PERIOD_S, False
    while True:
        time.sleep(pause_s)  # first: what has just started is not alone in wanting the cores
        # One that is gone again at the next look may have died, for want of memory: then another one is no help.
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        try:
            if any(title.startswith(IDLE_TITLE) or _STARTING in title for title in _titles_of_workers()):
                pause_s = _PERIOD_S
            else:
                _start_worker()
            has_failed = False
        except Exception:
            if not has_failed:  # once, not at every try
                logger.warning("no worker can be kept ready for the next replica; trying again", exc_info=True)
            has_failed = True


def _start_worker() -> None:
    node_id = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    node = next(node for node in nodes if node["NodeID"] == node_id)
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        request = PrestartWorkersRequest(num_workers=1, keep_alive_duration_secs=_KEPT_IDLE_S)
        raylet = NodeManagerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        raylet.PrestartWorkers(request, timeout=_TIMEOUT_S)


def _titles_of_workers() -> list[str]:
    """What the workers of this one's node call themselves; those that start have a command line."""
    titles = []
    for process in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            titles.append(" ".join(process.cmdline()))
    return titles
