"""What is installed: known, and looked up among what is known to be weak."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request

from serve_app.processes import free_port
from tests.running import running_app

ROOT = Path(__file__).resolve().parent.parent.parent
WEAK = "limits"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Address of a database of vulnerabilities that knows one, of one locked package."""
    app = FastAPI()

    @app.post("/v1/query")
    async def query(request: Request) -> dict[str, object]:
        package = (await request.json())["package"]["name"]
        if package != WEAK:
            return {}
        affected = [{"package": {"name": WEAK, "ecosystem": "PyPI"}, "ranges": []}]
        published = "2026-01-01T00:00:00Z"
        return {"vulns": [{"id": "TEST-1", "published": published, "details": "made up", "affected": affected}]}

    with running_app(app) as url:
        yield f"{url}/v1/query"


def audit(url: str, folder: Path, *packages: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The audit of these locked packages alone."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines = [re.search(rf"^{package}==\S+", lock, re.MULTILINE) for package in packages]
    (folder / "requirements.lock").write_text("".join(f"{line.group()}\n" for line in lines if line))
    return subprocess.run(
        [ROOT / "scripts" / "audit.sh", folder / "requirements.lock"],
        env={**os.environ, "OSV_URL": url, "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_known_vulnerability_fails(database: str, tmp_path: Path) -> None:
    done = audit(database, tmp_path, "numpy", WEAK)
    assert done.returncode == 1
    assert "TEST-1" in done.stderr


def test_packages_without_one_pass(database: str, tmp_path: Path) -> None:
    done = audit(database, tmp_path, "numpy", "pillow")
    assert (done.returncode, "NOT audited" in done.stderr) == (0, False)


def test_a_database_that_is_away_is_said(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1/query"
    done = audit(nowhere, tmp_path, "numpy")
    assert (done.returncode, "NOT audited" in done.stderr) == (0, True)
    assert audit(nowhere, tmp_path, "numpy", AUDIT="required").returncode == 1


def test_what_cannot_be_read_fails(database: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("this is no list of packages\n")
    done = subprocess.run(
        [ROOT / "scripts" / "audit.sh", tmp_path / "lock"],
        env={**os.environ, "OSV_URL": database, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1


@pytest.mark.timeout(240)
def test_the_bill_names_every_locked_package(tmp_path: Path) -> None:
    """As `just sbom` makes it."""
    bill = tmp_path / "sbom.json"
    subprocess.run([ROOT / "scripts" / "sbom.sh", bill], env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=True)
    document = json.loads(bill.read_text(encoding="utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    named = {(_normal(each["name"]), each["version"]) for each in document["components"]}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {(_normal(name), version) for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)}
    assert len(locked) > 150
    assert locked <= named
    assert "torch" in {name for name, _ in named}
    assert Path(sys.executable).is_relative_to(ROOT)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
