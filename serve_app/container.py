"""``python -m serve_app.container``: the application as the one program of a container.

It listens on all addresses, has fixed ports, logs to standard output, and is ended in good order by SIGTERM or Ctrl-C.
Without it ``serve run`` would listen on loopback, ignore a SIGTERM as process 1, and export metrics on a random port.
"""

import os
import signal
import tempfile
from pathlib import Path

import yaml
from dotenv import load_dotenv

from serve_app.processes import ROOT

METRICS_PORT = 8080
"""Of Ray's Prometheus metrics, Serve's among them; the one that KubeRay takes, too."""

# Next to nothing goes through Ray's object store, as handles speak gRPC, and Ray's default, a third of the memory,
# does not fit into a container's /dev/shm.
_OBJECT_STORE_BYTES = 256 * 2**20


def main() -> None:
    """Serves until SIGTERM or SIGINT comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load_dotenv(ROOT / "serve.env")  # the environment wins over the file
    # In this mode replicas write into files alone, which nobody looks for in a container.
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "1")
    # Ray reads its variables when it is imported.
    import ray  # noqa: PLC0415
    from ray.serve.scripts import cli as serve_command  # noqa: PLC0415

    ray.init(
        address="local",
        namespace="serve",
        object_store_memory=_OBJECT_STORE_BYTES,
        _metrics_export_port=METRICS_PORT,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in place, which drains nothing
    with tempfile.TemporaryDirectory() as folder:
        config_path = Path(folder) / "serve_config.yaml"
        config_path.write_text(container_config(), encoding="utf-8")
        serve_command(["run", "--app-dir", str(ROOT), str(config_path)], prog_name="serve")


def container_config() -> str:
    """``serve_config.yaml``, but for the address to listen on."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"]["host"] = "0.0.0.0"  # noqa: S104 - a container's ports are published one by one
    return yaml.safe_dump(config, sort_keys=False)


if __name__ == "__main__":
    main()
