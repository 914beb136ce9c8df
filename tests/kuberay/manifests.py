"""The manifests as `kubectl kustomize` renders them."""

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from serve_app.processes import ROOT
from tests.servers import absent

KUBERAY = ROOT / "kuberay"
OVERLAYS = ("local", "dev", "stage", "prod")

Manifest = dict[str, Any]


@cache
def rendered(folder: Path) -> tuple[Manifest, ...]:
    """The objects of a folder with a kustomization."""
    if shutil.which("kubectl") is None:
        absent("kubectl is not installed")
    text = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert text.returncode == 0, text.stderr
    return tuple(document for document in yaml.safe_load_all(text.stdout) if document)


def find(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one object of this kind and name."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found
