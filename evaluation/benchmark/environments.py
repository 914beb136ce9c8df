"""What contestants need on disk, below ``build/bench``: environments of their own, made once, and folders for data."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from serve_app.processes import ROOT

ENVIRONMENTS = ROOT / "build" / "bench"
_INSTALL_TIMEOUT_S = 900.0


class NotInstallableError(Exception):
    """Its packages cannot be had; the message says why, for people."""


def environment_with(name: str, requirements: list[str]) -> Path:
    """The folder of the programs of an environment that has these packages, and this project with its own dependencies.

    Those of the project are installed in the very versions that this process runs on: the detector is the same
    everywhere. An environment that is there already is taken as it is, when it was made for the same requirements.

    Raises:
        NotInstallableError: pip failed.
    """
    folder = ENVIRONMENTS / name
    wanted = [*requirements, *_project_requirements()]
    stamp = folder / "installed"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8").splitlines() == wanted):
        stamp.unlink(missing_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, *wanted])
        # After them, and without any: they are there.
        _run([*pip, "--no-deps", "--editable", str(ROOT)])
        stamp.write_text("\n".join(wanted), encoding="utf-8")
    return folder / "bin"


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """An empty folder, removed afterwards. On the checkout's disk: ``/tmp`` may be memory, where syncing is free."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="data-", dir=ENVIRONMENTS, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _project_requirements() -> list[str]:
    """What ``circles`` needs, pinned to what runs here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in project["dependencies"]]
    return [f"{name}=={version(name)}" for name in names]


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)  # noqa: S603
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise NotInstallableError(f"{' '.join(command[1:4])} … failed: {' '.join(last)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstallableError(str(error)) from error
