"""The README says what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from circles.settings import Settings
from deployments.api import create_api
from deployments.services import open_services
from tests.fakes import FixedDetector, GatedDetector
from tests.running import settings_in

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_settings_table_is_the_code() -> None:
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([^`]*)` \| (.*) \|$", table, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is None or name == "api_keys":
            default = "unset"
        elif isinstance(default, bool):
            default = str(default).lower()  # as one would write it
        elif isinstance(default, float):
            default = f"{default:g}"
        expected.append((name.upper(), str(default), field.description))
    assert rows == expected


def test_endpoints_are_those_of_the_application(tmp_path: Path) -> None:
    services = open_services(settings_in(tmp_path), GatedDetector(FixedDetector()), holder="a test")
    paths = create_api(services, is_behind_serve=False).openapi()["paths"]
    services.database.close()
    for lock in services.locks:
        lock.release()
    served = {(method.upper(), path.removeprefix("/api/v1")) for path, methods in paths.items() for method in methods}
    documented = set(
        re.findall(r"`(GET|POST|DELETE) (/[^`]*)`", README.partition("## Endpoints")[2].partition("##")[0])
    )
    assert documented == served


def test_words_exist() -> None:
    listed = subprocess.run(
        [Path(sys.executable).parent / "just", "--justfile", ROOT / "justfile", "--summary"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    table = README.partition("## Words")[2].partition("## ")[0]
    in_table = {
        word.split()[0]
        for row in re.findall(r"^\| (`.*?`) \| ", table, re.MULTILINE)
        for word in re.findall(r"`([^`]+)`", row)
    }
    assert in_table == set(listed)
    used = set(re.findall(r"(?:\./justw|`just) ([a-z][a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    assert used <= set(listed)


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/performance.md",
        "docs/reliability.md",
        "docs/migration.md",
        "evaluation/README.md",
        "training/README.md",
        "circles/weights/heatmap.md",
    ],
)
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    paths = re.findall(r"`((?:circles|deployments|serve_app|evaluation|training|tests|docs)/[\w./-]*\w)`", text)
    optional = {"evaluation/dataset"}
    folder = (ROOT / document).parent
    assert [link for link in links if not (folder / link).exists()] == []
    assert [path for path in {*paths} - optional if not (ROOT / path).exists()] == []
