"""docker-compose.yml and what stands in compose/, as far as reading tells; there need be no Docker."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from circles.settings import Settings
from serve_app.container import METRICS_PORT
from tests.dockerfile import parse
from tests.servers import absent

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "docker-compose.yml", ROOT / "compose" / "monitoring.yml", ROOT / "compose" / "postgres.yml"]
PROMETHEUS = ROOT / "compose" / "prometheus.yml"
DASHBOARD = json.loads((ROOT / "compose" / "grafana" / "dashboards" / "circles.json").read_text())

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def _services(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that this file defines, rather than adds to."""
    for name, service in yaml.safe_load(path.read_text())["services"].items():
        if "image" in service:
            yield name, service


def test_yamllint_finds_nothing() -> None:
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 120}}}"
    files = [*FILES, *(ROOT / "compose").rglob("*.yml")]
    done = subprocess.run(
        [Path(sys.executable).parent / "yamllint", "--strict", "-d", rules, *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@each_file
def test_every_service_is_confined(path: Path) -> None:
    for name, service in _services(path):
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"], name
        assert {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service) == set(), name


@each_file
def test_images_are_ours_or_of_one_version(path: Path) -> None:
    for _, service in _services(path):
        assert re.fullmatch(r"circles:\$\{CIRCLES_VERSION:-local\}|[\w/-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", service["image"])


@each_file
def test_every_service_says_whether_it_is_well(path: Path) -> None:
    (serve,) = (stage for stage in parse((ROOT / "Dockerfile").read_text())[1] if stage.name == "serve")
    assert any(instruction.name == "HEALTHCHECK" for instruction in serve.instructions)
    for name, service in _services(path):
        assert "healthcheck" in service or name == "circles", name


@each_file
def test_mounted_files_exist(path: Path) -> None:
    compose = yaml.safe_load(path.read_text())
    for _, service in _services(path):
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], volume
            assert not source.startswith(".") or volume.endswith(":ro"), volume


@each_file
def test_passwords_have_no_default(path: Path) -> None:
    uses = re.findall(r"\$\{\w*PASSWORD([^}]*)\}", path.read_text())
    assert all(use.startswith(":?") for use in uses)
    assert uses or path.name == "docker-compose.yml"


@each_file
def test_ports_are_open_to_this_machine_only(path: Path) -> None:
    for _, service in _services(path):
        for port in service.get("ports", []):
            assert port.startswith("${CIRCLES_ADDRESS:-127.0.0.1}:"), port


def test_database_url_is_one_that_settings_take() -> None:
    environment = yaml.safe_load(FILES[-1].read_text())["services"]["circles"]["environment"]
    url = re.sub(r"\$\{[^}]*\}", "secret", environment["DATABASE_URL"])
    assert Settings(database_url=url).database_url == "postgresql+psycopg://circles:secret@postgres/circles"


def test_services_depend_on_services() -> None:
    names = {name for path in FILES for name, _ in _services(path)}
    for path in FILES:
        for service in yaml.safe_load(path.read_text())["services"].values():
            assert set(service.get("depends_on", {})) <= names


def test_prometheus_asks_ray_where_it_answers() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]}
    assert jobs["ray"]["static_configs"] == [{"targets": [f"circles:{METRICS_PORT}"]}]


def _promtool(*arguments: str | Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        absent("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration() -> None:
    _promtool("check", "config", PROMETHEUS)


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"of:dashboard:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    _promtool("check", "rules", path)


def test_dashboard_uses_the_provisioned_source() -> None:
    grafana = ROOT / "compose" / "grafana"
    (source,) = yaml.safe_load((grafana / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
