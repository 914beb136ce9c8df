"""What stands behind a word comes to its program as it was written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
JUST = Path(sys.executable).parent / "just"
ARGUMENTS = [
    "--to",
    "postgresql+psycopg://u:p@h/db?sslmode=verify-full&sslrootcert=/ca.pem",
    "a b; $HOME",
    "it's",
    '"*"',
]
PROGRAMS = (
    ".venv/bin/python",
    ".venv/bin/uv",
    "scripts/install.sh",
    "scripts/sbom.sh",
    "kuberay/cluster/deploy.sh",
    "kuberay/cluster/logs.sh",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The words, and in the place of their programs ones that say what they are given."""
    shutil.copy(ROOT / "justfile", tmp_path)
    for name in PROGRAMS:
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
        program.chmod(0o755)
    return tmp_path


def given(checkout: Path, *words: str) -> list[str]:
    """The arguments of the program that ran last."""
    done = subprocess.run([JUST, *words], cwd=checkout, capture_output=True, text=True, check=True)
    arguments: list[str] = json.loads(done.stdout.splitlines()[-1])
    return arguments


def test_arguments_reach_the_program_unchanged(checkout: Path) -> None:
    dump = subprocess.run([JUST, "--dump", "--dump-format", "json"], cwd=checkout, capture_output=True, check=True)
    recipes = json.loads(dump.stdout)["recipes"]
    words = [word for word, recipe in recipes.items() if any(each["kind"] == "star" for each in recipe["parameters"])]
    assert "storage" in words
    for word in words:
        arguments = given(checkout, word, *ARGUMENTS)
        start = arguments.index(ARGUMENTS[0])
        assert arguments[start : start + len(ARGUMENTS)] == ARGUMENTS, word


def test_context_is_one_argument(checkout: Path) -> None:
    assert given(checkout, "k8s-logs", "-f", "--context", "a b&c") == ["--follow", "--context", "a b&c"]
    assert given(checkout, "k8s-logs") == []
