"""The Dockerfile, as far as reading it tells."""

import re
import subprocess
import sys
from pathlib import Path

from tests.dockerfile import parse

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_base_image_has_the_ray_of_the_lock() -> None:
    arguments, _ = parse(DOCKERFILE)
    (locked,) = re.findall(r"^ray==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert arguments["RAY_IMAGE"] == f"rayproject/ray:{locked}-py311-cpu"


def test_last_stages_install_nothing() -> None:
    _, stages = parse(DOCKERFILE)
    assert stages[-1].name == "serve"
    for stage in stages:
        if not stage.name.endswith("build") and stage.name != "uv":
            steps = " ".join(step.text for step in stage.instructions if step.name == "RUN")
            assert re.findall(r"\b(pip|uv|apt-get|apt|conda)\b", steps) == []
