"""The README of `kuberay` says what there is."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.processes import ROOT
from tests.kuberay.manifests import KUBERAY, OVERLAYS, Manifest, find, rendered

README = (KUBERAY / "README.md").read_text(encoding="utf-8")
_GIB = {"Mi": 1 / 1024, "Gi": 1.0}


def test_links_and_paths_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    anchors = re.findall(r"\]\((?!https?:)[^)#]*#([^)]+)\)", README)
    assert [link for link in links if not (KUBERAY / link).exists()] == []
    others = (ROOT / "README.md", ROOT / "docs" / "performance.md")
    headings = README + "".join(path.read_text(encoding="utf-8") for path in others)
    known = {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", headings, re.MULTILINE)}
    assert set(anchors) <= known
    paths = re.findall(r"(?<![\w/.])(kuberay/[\w./-]*\w)", README)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_component_is_listed() -> None:
    for folder in (KUBERAY / "components").iterdir():
        assert re.search(rf"^\| [^|]*`{folder.name}`", README, re.MULTILINE), folder.name


def test_images_are_built_by_stages_that_there_are() -> None:
    stages = re.findall(r" AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*re.findall(r"--target (\S+)", README)} == {"kserve"} <= {*stages}


def test_secrets_of_the_first_deployment_are_those_that_are_wanted() -> None:
    made = {*re.findall(r"create secret generic (\S+)", README.partition("## The first deployment")[2])}
    assert {*_secrets(rendered(KUBERAY / "overlays" / "prod"))} == made
    assert {*_secrets(rendered(KUBERAY / "overlays" / "stage"))} == {"circles-api-keys"}
    assert {*_secrets(rendered(KUBERAY / "overlays" / "dev"))} == set()


def _secrets(value: Any) -> list[str]:
    """The names of those without which a pod does not start."""
    if isinstance(value, Mapping):
        own = [
            each["name"]
            for key, each in value.items()
            if key in ("secretKeyRef", "secretRef") and not each.get("optional", False)
        ]
        return [*own, *(name for each in value.values() for name in _secrets(each))]
    return [name for each in value for name in _secrets(each)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_private_registries_are_asked_with_a_secret(overlay: str, tmp_path: Path) -> None:
    """By the accounts of all pods, once an overlay has the patch that the README shows."""
    (snippet,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    resource = os.path.relpath(KUBERAY / "overlays" / overlay, tmp_path.resolve())
    kustomization = {"resources": [resource], "patches": yaml.safe_load(snippet)}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    objects = rendered(tmp_path)
    accounts = {each["metadata"]["name"] for each in objects if each.get("imagePullSecrets") == [{"name": "registry"}]}
    cluster = find(objects, "RayService", "circles")["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    stateful = [each["spec"] for each in objects if each["kind"] == "StatefulSet"]
    assert {each["template"]["spec"]["serviceAccountName"] for each in (*groups, *stateful)} == accounts


def test_what_production_reserves_is_what_its_pods_ask_for() -> None:
    said = re.search(
        r"reserves (\d+) cores and (\d+) GiB with one detector pod, (\d+) cores and (\d+) GiB with all (\d+)", README
    )
    assert said is not None
    objects = rendered(KUBERAY / "overlays" / "prod")
    cluster = find(objects, "RayService", "circles")["spec"]["rayClusterConfig"]
    ingress, detector = cluster["workerGroupSpecs"]
    redis = find(objects, "StatefulSet", "circles-redis")["spec"]
    always = [cluster["autoscalerOptions"]["resources"], *map(_resources, (cluster["headGroupSpec"], redis))]
    always += ingress["minReplicas"] * [_resources(ingress)]
    numbers = []
    for pods in (detector["minReplicas"], detector["maxReplicas"]):
        requests = [each["requests"] for each in (*always, *(pods * [_resources(detector)]))]
        numbers += [round(sum(_cores(each) for each in requests)), round(sum(_gib(each) for each in requests))]
    assert [int(number) for number in said.groups()] == [*numbers, detector["maxReplicas"]]


def _resources(group: Manifest) -> Manifest:
    (container,) = group["template"]["spec"]["containers"]
    resources: Manifest = container["resources"]
    return resources


def _cores(request: Mapping[str, Any]) -> float:
    cpu = str(request["cpu"])
    return int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def _gib(request: Mapping[str, Any]) -> float:
    return int(request["memory"][:-2]) * _GIB[request["memory"][-2:]]
