"""``python -m serve_app.drain``: moves Serve's replicas off this node before its pod ends (the pods' preStop)."""

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import ray
import typer
from ray.util.state import list_actors

logger = logging.getLogger(__name__)

TIMEOUT_S = 40
"""What the replicas have; a pod's grace period is longer."""

_POLL_PERIOD_S = 0.5


def main(
    timeout_s: Annotated[int, typer.Option(help="Seconds that the replicas have; then the pod ends.")] = TIMEOUT_S,
) -> None:
    """Tell Ray that this node goes, and wait until Serve has no replica on it.

    Serve starts a replica elsewhere for each one here, and lets the one here end what it has begun. The only ingress of
    a service on SQLite has nowhere to go: its node is left when the time is over, or it was stopped.
    """
    logging.basicConfig(level=logging.INFO, format="drain: %(message)s")
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    context = ray.get_runtime_context()
    drain_node(context.gcs_address, context.get_node_id(), timeout_s)


def drain_node(address: str, node_id: str, timeout_s: int) -> None:
    """Drains one node of a running cluster.

    Args:
        address: Of the cluster's head, host:port.
        node_id: The node's, in hexadecimal digits.
        timeout_s: How long to wait for its replicas to be gone.
    """
    deadline = time.monotonic() + timeout_s
    # Serve moves replicas off nodes that a cloud is about to take away, which is what happens here too.
    subprocess.run(  # noqa: S603
        [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            f"--address={address}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=the pod ends",
            f"--deadline-remaining-seconds={timeout_s}",
        ],
        check=True,
    )
    while replicas := _replicas_on(node_id):
        if time.monotonic() > deadline:
            logger.info("still here after %d s: %s", timeout_s, ", ".join(replicas))
            return
        time.sleep(_POLL_PERIOD_S)
    logger.info("no replica is left here")


def _replicas_on(node_id: str) -> list[str]:
    alive = list_actors(filters=[("node_id", "=", node_id), ("state", "=", "ALIVE")])
    return [actor.class_name for actor in alive if actor.class_name.startswith("ServeReplica:")]


if __name__ == "__main__":
    typer.run(main)
