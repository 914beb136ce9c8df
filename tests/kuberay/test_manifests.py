"""Manifests of every environment, as kustomize renders them: valid, and of parts that fit each other."""

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from circles.settings import Settings
from serve_app.drain import TIMEOUT_S
from serve_app.manifests import problems
from serve_app.processes import ROOT
from tests.kuberay.manifests import KUBERAY, OVERLAYS, Manifest, find, rendered
from tests.servers import absent

_VALIDATOR = ROOT.parent / "shared" / "tools" / "validate_manifests.py"
_COMPONENTS = sorted(folder.name for folder in (KUBERAY / "components").iterdir())
# Those that take each other's place, or need another one.
_EXCLUSIVE = ({"volume", "postgres"}, {"volume", "s3"}, {"gpu", "kserve-remote"})
_NEEDS = {"gateway-api": "istio", "jwt": "istio"}
# Objects that are made by hand, or by the cluster itself.
_MADE_ELSEWHERE = (
    *("ConfigMap 'kube-root-ca.crt'", "Secret 'circles-database'", "Secret 'circles-bucket'", "Secret 'circles-redis'"),
    "ClusterIssuer 'circles'",
    "selects no pod template of namespace istio-system",
)
_FORMS = [f"overlays/{name}" for name in OVERLAYS] + [
    "base",
    "kserve",
    "kserve/local",
    "kserve/standard",
    "kserve/keda",
]


def _assert_valid(*files: Path) -> None:
    """By the validator that knows the real CRDs, CEL rules and the operators' own."""
    if not _VALIDATOR.is_file():
        pytest.skip(f"the CRDs are not here: {_VALIDATOR} is absent")
    ignored = [argument for text in _MADE_ELSEWHERE for argument in ("--ignore-warning", text)]
    found = subprocess.run(
        [sys.executable, _VALIDATOR, "--strict", *ignored, *files], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("form", _FORMS)
def test_manifests_are_valid(form: str, tmp_path: Path) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(rendered(KUBERAY / form)), encoding="utf-8")
    _assert_valid(path)


@pytest.mark.timeout(400)
def test_components_fit_together_in_every_combination(tmp_path: Path) -> None:
    """All pairs of components that do not exclude each other, with those that they need."""
    with_pairs = [(name,) for name in _COMPONENTS] + list(combinations(_COMPONENTS, 2))
    paths = []
    for names in with_pairs:
        chosen = {*names, *(_NEEDS[name] for name in names if name in _NEEDS)}
        if any(pair <= chosen for pair in _EXCLUSIVE):
            continue
        ordered = sorted(chosen, key=lambda name: (name in _NEEDS, name))
        folder = tmp_path / "-".join(ordered)
        folder.mkdir(exist_ok=True)
        relative = [os.path.relpath(KUBERAY / "components" / name, folder) for name in ordered]
        kustomization = {"resources": [os.path.relpath(KUBERAY / "base", folder)], "components": relative}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        path = folder / "rendered.yaml"
        path.write_text(yaml.safe_dump_all(rendered(folder)), encoding="utf-8")
        paths.append(path)
    assert len(paths) > len(_COMPONENTS)
    for path in paths:
        _assert_valid(path)


@pytest.mark.parametrize("form", _FORMS)
def test_scanner_finds_nothing_but_what_is_excepted(form: str, tmp_path: Path) -> None:
    """checkov, which looks into plain pods only; `.checkov.yaml` says what is excepted and why."""
    program = shutil.which("checkov", path=f"{ROOT / 'build' / 'checkov' / 'bin'}:{os.environ.get('PATH', '')}")
    if program is None:
        absent("checkov is not installed (python -m venv build/checkov; build/checkov/bin/pip install checkov)")
    objects = [*rendered(KUBERAY / form), *_pods(rendered(KUBERAY / form))]
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    command = [program, "--config-file", str(ROOT / ".checkov.yaml"), "--file", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Passed checks:" in found.stdout


def _pods(objects: Sequence[Manifest]) -> Iterator[Manifest]:
    """The pods that operators make of their templates."""
    for each in objects:
        specs: dict[str, Manifest] = {}
        if each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            groups = {"head": cluster["headGroupSpec"]} | {one["groupName"]: one for one in cluster["workerGroupSpecs"]}
            specs = {name: group["template"]["spec"] for name, group in groups.items()}
        elif each["kind"] == "ServingRuntime":
            security = {"securityContext": each["spec"]["containers"][0]["securityContext"]}
            account = {"serviceAccountName": "circle-detector", "automountServiceAccountToken": False}
            specs = {"predictor": {**each["spec"], **account, **security}}
        for name, spec in specs.items():
            metadata = {"name": f"pod-{name}", "namespace": each["metadata"]["namespace"]}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_serve_config_is_that_of_a_laptop_but_for_these_keys() -> None:
    local = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    service = find(rendered(KUBERAY / "base"), "RayService", "circles")
    cluster = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert cluster["http_options"].pop("host") == "0.0.0.0"  # pods have an address of their own
    local["http_options"].pop("host")
    (application,) = cluster["applications"]
    (ingress,) = application["deployments"]
    assert ingress.pop("ray_actor_options") == {
        "num_cpus": 0,
        "resources": {"ingress": 1},
        "label_selector": {"app.kubernetes.io/component": "ingress"},
    }
    assert cluster == local


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_variables_of_the_fast_path_are_in_every_pod(overlay: str) -> None:
    objects = rendered(KUBERAY / "overlays" / overlay)
    variables = dotenv_values(ROOT / "serve.env")
    cluster = find(objects, "RayService", "circles")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        maps = [
            find(objects, "ConfigMap", each["configMapRef"]["name"])
            for each in container["envFrom"]
            if "configMapRef" in each
        ]
        assert any(each["data"] == variables for each in maps)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_end_after_their_replicas(overlay: str) -> None:
    """What a replica has for its requests, what the drain has, what the pod has: each longer than the one before."""
    cluster = find(rendered(KUBERAY / "overlays" / overlay), "RayService", "circles")["spec"]["rayClusterConfig"]
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "serve_app.drain"]
        assert Settings().drain_timeout_s < TIMEOUT_S < spec["terminationGracePeriodSeconds"]


def test_clearing_of_redis_migrates_nothing() -> None:
    """The operator runs the init container of a head that is gone once more, in a Job of another node type."""
    head = _spec(list(rendered(KUBERAY / "overlays" / "prod")))["rayClusterConfig"]["headGroupSpec"]
    (migrate,) = head["template"]["spec"]["initContainers"]
    without_python = {"PATH": "/nowhere"}
    shell = [shutil.which("sh"), *migrate["command"][1:]]
    cleared = subprocess.run(shell, env={**without_python, "RAY_NODE_TYPE": "redis-cleanup"}, check=False)
    assert cleared.returncode == 0
    migrated = subprocess.run(shell, env={**without_python, "RAY_NODE_TYPE": "head"}, capture_output=True, check=False)
    assert b"python" in migrated.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_parts_fit_each_other(overlay: str) -> None:
    assert problems(rendered(KUBERAY / "overlays" / overlay)) == []


def _group(objects: list[Manifest], name: str) -> Manifest:
    (group,) = [each for each in _spec(objects)["rayClusterConfig"]["workerGroupSpecs"] if each["groupName"] == name]
    found: Manifest = group
    return found


def _spec(objects: list[Manifest]) -> Manifest:
    spec: Manifest = find(objects, "RayService", "circles")["spec"]
    return spec


def _settings(objects: list[Manifest]) -> dict[str, str]:
    (found,) = [each for each in objects if each["metadata"]["name"].startswith("circles-settings")]
    data: dict[str, str] = found["data"]
    return data


def _start_second_cluster(objects: list[Manifest]) -> None:
    _spec(objects)["upgradeStrategy"]["type"] = "NewCluster"


def _allow_second_ingress_pod(objects: list[Manifest]) -> None:
    _group(objects, "ingress")["maxReplicas"] = 2


def _ask_for_two_ingress_replicas(objects: list[Manifest]) -> None:
    _settings(objects)["INGRESS_REPLICAS"] = "2"


def _mount_claim_in_detectors(objects: list[Manifest]) -> None:
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "circles-data"}}
    pod = _group(objects, "detector")["template"]["spec"]
    pod["volumes"].append(claim)
    pod["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})


def _keep_rows_beside_the_claim(objects: list[Manifest]) -> None:
    _settings(objects)["DATABASE_URL"] = "sqlite:////app/data/db.sqlite3"


def _leave_ingress_at_zero(objects: list[Manifest]) -> None:
    _group(objects, "ingress")["minReplicas"] = 0


def _want_more_detectors_than_fit(objects: list[Manifest]) -> None:
    _settings(objects)["DETECTOR_MAX_REPLICAS"] = "99"


def _listen_elsewhere(objects: list[Manifest]) -> None:
    _spec(objects)["serveConfigV2"] = _spec(objects)["serveConfigV2"].replace("port: 8000", "port: 8001")


def _offer_another_port(objects: list[Manifest]) -> None:
    _spec(objects)["serveService"]["spec"]["ports"][0]["port"] = 80


def _probe_another_port(objects: list[Manifest]) -> None:
    command = _group(objects, "ingress")["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    command[-1] = command[-1].replace(":8000/", ":8001/")


def _unpin_ingress(objects: list[Manifest]) -> None:
    _spec(objects)["serveConfigV2"] = _spec(objects)["serveConfigV2"].replace("resources:", "memory_limits:")


def _drop_half_of_the_fast_path(objects: list[Manifest]) -> None:
    (serve,) = [each for each in objects if each["metadata"]["name"].startswith("circles-serve-")]
    del serve["data"]["RAY_SERVE_ENABLE_HA_PROXY"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_start_second_cluster, "SQLite has one writer, but this upgradeStrategy starts a second cluster"),
        (_start_second_cluster, "claim circles-data is mounted by one node, but this upgradeStrategy"),
        (_allow_second_ingress_pod, "SQLite has one writer, but the ingress group may have several pods"),
        (_allow_second_ingress_pod, "claim circles-data is mounted by one node at a time, but by up to 2 pods"),
        (_ask_for_two_ingress_replicas, "SQLite has one writer: give PostgreSQL or MySQL"),
        (_mount_claim_in_detectors, r"by up to 5 pods \(ingress, detector\)"),
        (_keep_rows_beside_the_claim, "on no claim, and goes with the pod"),
        (_leave_ingress_at_zero, "the ingress group has 0 to 1 pods"),
        (_want_more_detectors_than_fit, "want 99 cores, but the detector group has 8 at most"),
        (_listen_elsewhere, "'serve': 8001.*but the ingress pods list"),
        (_offer_another_port, "its Service offers"),
        (_probe_another_port, "readiness probe of the ingress pods does not ask the proxy"),
        (_unpin_ingress, "the ingress is not pinned"),
        (_drop_half_of_the_fast_path, "set both or neither"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Callable[[list[Manifest]], None], sentence: str) -> None:
    objects = copy.deepcopy(list(rendered(KUBERAY / "overlays" / "stage")))
    assert problems(objects) == []
    change(objects)
    assert re.search(sentence, "\n".join(problems(objects)))


@pytest.mark.parametrize(("order", "is_right"), [(("jwt", "gateway-api"), True), (("gateway-api", "jwt"), False)])
def test_tokens_are_asked_for_at_the_gateway_that_there_is(
    order: tuple[str, ...], is_right: bool, tmp_path: Path
) -> None:
    """`gateway-api` hands the policies of `jwt` over to its gateway, and has to come after it for that."""
    names = ("istio", *order, "volume")
    kustomization = {
        "resources": [os.path.relpath(KUBERAY / "base", tmp_path)],
        "components": [os.path.relpath(KUBERAY / "components" / name, tmp_path) for name in names],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    found = problems(rendered(tmp_path))
    assert (found == []) is is_right
    assert is_right or "list `jwt` before `gateway-api`" in found[0]


def test_check_says_which_folder_is_wrong(tmp_path: Path) -> None:
    """As `just deploy` runs it."""
    kustomization = {
        "resources": [os.path.relpath(KUBERAY / "base", tmp_path)],
        "components": [os.path.relpath(KUBERAY / "components" / "volume", tmp_path)],
        "patches": [
            {
                "target": {"kind": "RayService"},
                "patch": "- {op: replace, path: /spec/upgradeStrategy/type, value: NewCluster}",
            }
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-m", "serve_app.manifests", tmp_path], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert f"{tmp_path}: SQLite has one writer" in found.stderr
