"""The images: built by the steps of the Dockerfile and run as they are meant to be, though without Docker."""

import json
import os
import re
import signal
import stat
from pathlib import Path

import pytest
import yaml

from tests.dockerfile import ADDRESS, Builder, BuildError, Container, build_context, why_impossible
from tests.running import wait_until

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PICTURE = ROOT / "docs" / "coins.jpg"

_COUNTED_ONCE_SOMETHING_FAILED = {"ray_serve_deployment_error_counter_total"}

# Docker's own grace, and the one of docker-compose.yml.
_DOCKER_GRACE_S = 10.0
_COMPOSE_GRACE_S = 30.0

# `control`: never while somebody else's service is tested. Steps take as long as installing does.
pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    folder = tmp_path_factory.mktemp("images")
    reason = why_impossible(folder / "try")
    if reason is not None:
        pytest.skip(reason)
    context = build_context(ROOT, folder / "context")
    return Builder(DOCKERFILE, context, folder / "layers", {"VERSION": "1.2.3", "REVISION": "abc"})


@pytest.mark.parametrize("target", ["kserve", "serve"])
def test_image_holds_what_it_needs(builder: Builder, target: str) -> None:
    image = builder.build(target)
    packages = {path.name for path in image.path("/opt/venv/lib/python3.11/site-packages").iterdir()}
    assert {"onnxruntime", "cv2", "sqlalchemy"} <= packages
    assert packages & {"torch", "pytest", "mypy", "pip", "uv"} == set()
    assert ("ray" in packages, "kserve" in packages) == ((True, False) if target == "serve" else (False, True))
    assert (image.path("/app") / "circles" / "weights" / "heatmap.onnx").is_file()
    assert {path.name for path in image.path("/app").iterdir()} & {"tests", "training", ".git"} == set()
    assert image.labels["org.opencontainers.image.version"] == "1.2.3"
    assert image.labels["org.opencontainers.image.revision"] == "abc"


@pytest.mark.parametrize("target", ["kserve", "serve"])
def test_nothing_but_the_data_folder_is_its_users(builder: Builder, target: str) -> None:
    image = builder.build(target)
    folders = [image.path(folder) for folder in ("/app", "/opt", "/usr", "/data") if image.path(folder).exists()]
    open_to_others = stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID
    is_bad = [
        path
        for folder in folders
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink() and (path.stat().st_uid != 0 or path.stat().st_mode & open_to_others)
    ]
    assert is_bad == ([image.path("/data")] if target == "serve" else [])


def test_package_that_is_not_the_locked_one_is_refused(builder: Builder, tmp_path: Path) -> None:
    context = build_context(ROOT, tmp_path / "context")
    lock = context / "requirements.lock"
    text, count = re.subn(r"(?<=--hash=sha256:)\w{8}", "00000000", _section(lock.read_text(), "stamina"))
    assert count > 0
    lock.write_text(lock.read_text().replace(_section(lock.read_text(), "stamina"), text))
    with pytest.raises(BuildError, match=r"Hash mismatch for `stamina"):
        Builder(DOCKERFILE, context, tmp_path / "layers").build("kserve-build")


def _section(lock: str, package: str) -> str:
    found = re.search(rf"^{package}==(?:.*\\\n)+.*\n", lock, re.MULTILINE)
    assert found
    return found[0]


def test_model_server_runs_in_its_container(builder: Builder, tmp_path: Path) -> None:
    container = Container(builder.build("kserve"), tmp_path / "container")
    try:
        container.wait_until_healthy(60)
        _check_confined(container)
        answer = json.loads(
            container.ask(
                *("--header", "Content-Type: image/jpeg", "--data-binary", f"@{PICTURE}"),
                f"http://{ADDRESS}:9090/v1/models/circle-detector:predict",
            ).stdout
        )
        assert len(answer["predictions"][0]) == 7
        _check_ends(container, _DOCKER_GRACE_S)
    finally:
        container.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A volume, as Docker makes it of the image's folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 1000, 1000)
    return folder


def test_application_runs_in_its_container(builder: Builder, tmp_path: Path, data: Path) -> None:
    container = Container(builder.build("serve"), tmp_path / "container", data)
    try:
        container.wait_until_healthy(120)
        _check_confined(container)
        wait_until(lambda: container.ask(f"http://{ADDRESS}:8000/ready").returncode == 0, 60)
        upload = container.ask("--form", f"file=@{PICTURE}", f"http://{ADDRESS}:8000/images/")
        answer = json.loads(upload.stdout)
        assert (answer["status"], answer["detection"]["count"]) == ("done", 7)
        assert answer["detection"]["detector"]["name"] == "heatmap"
        wait_until(lambda: "POST /images/ 201" in container.log)  # where `docker logs` finds it
        assert container.execute("env", "RAY_AUTH_MODE=token", "serve", "status").returncode == 0
        wait_until(lambda: _metrics_of_the_dashboard() - _COUNTED_ONCE_SOMETHING_FAILED <= _metrics(container), 60)
        _check_ends(container, _COMPOSE_GRACE_S)
    finally:
        container.kill()
    assert (data / "db.sqlite3").is_file()
    assert len([path for path in (data / "images").rglob("*") if path.is_file()]) >= 1


def _metrics(container: Container) -> set[str]:
    """The names of what Prometheus is told at the addresses that it has."""
    config = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text())
    targets = [target for job in config["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    texts = [container.ask(f"http://{target.replace('circles', ADDRESS)}/metrics").stdout for target in targets]
    return set(re.findall(r"^(\w+)\{", "\n".join(texts), re.MULTILINE))


def _metrics_of_the_dashboard() -> set[str]:
    dashboard = (ROOT / "compose" / "grafana" / "dashboards" / "circles.json").read_text()
    return set(re.findall(r"\b(?:ray|haproxy)_\w+", dashboard))


def _check_confined(container: Container) -> None:
    """It is nobody special, and writes nowhere but where it must."""
    ids = container.execute(
        "sh", "-c", "id -u; id -g; grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/1/status"
    ).stdout.split()
    assert ids == ["1000", "1000", "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
    for folder in ("/app", "/opt/venv", "/"):
        assert container.execute("touch", f"{folder}/new").returncode != 0


def _check_ends(container: Container, grace_s: float) -> None:
    """SIGTERM, which `docker stop` and Kubernetes send, ends it in order: with 0 or by that very signal, and wholly."""
    processes = container.processes()
    status = container.stop(signal.SIGTERM, grace_s)
    assert status in (0, 128 + signal.SIGTERM), container.log
    assert [process for process in processes if process.is_running()] == []
