"""On what, and of what, a measurement was made."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from evaluation.run import hardware
from serve_app.processes import ROOT

_PACKAGES = (
    "ray",
    "fastapi",
    "uvicorn",
    "kserve",
    "onnxruntime",
    "opencv-python-headless",
    "numpy",
    "torch",
    "aiohttp",
)


def machine() -> dict[str, object]:
    """Processor, cores, memory, system, and how busy it was before."""
    return {
        "hardware": hardware(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
    }


def state() -> dict[str, object]:
    """Commit, whether files differ from it, versions of what matters, and the time."""
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "is_changed": None if commit is None else bool(_git("status", "--porcelain")),
        "versions": {name: version(name) for name in _PACKAGES},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    """What git says; None outside of a checkout."""
    if not Path(ROOT, ".git").exists():
        return None
    try:
        process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
