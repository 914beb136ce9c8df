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
from typing import Any

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
    *("Secret 'circles-api-keys'", "ClusterIssuer 'circles'"),
    "selects no pod template of namespace istio-system",
)
_FORMS = [f"overlays/{name}" for name in OVERLAYS] + [
    "base",
    "kserve",
    "kserve/local",
    "kserve/standard",
    "kserve/keda",
    "storage/volume",
    "storage/bucket",
]
# Forms that are for what an environment has.
_BESIDE = {"storage/volume": "overlays/stage", "storage/bucket": "overlays/prod"}
# Ports of Knative's queue-proxy, which shares its pods' network.
_QUEUE_PROXY_PORTS = {8012, 8013, 8022, 8112, 9090, 9091}
# What else reserves something on the Kind cluster, in thousandths of a core and MiB, as released: Kubernetes itself
# (950, 290), Istio (500, 996), Knative and net-istio (650, 420), KServe's controller (100, 300), KubeRay's operator
# (100, 512).
_RESERVED_BY_OTHERS = (2300, 2518)
_MIB = {"Mi": 1, "Gi": 1024}


def _objects(form: str) -> tuple[Manifest, ...]:
    """Those of a form, and of the environment that it is for."""
    return (*(rendered(KUBERAY / _BESIDE[form]) if form in _BESIDE else ()), *rendered(KUBERAY / form))


def _assert_valid(*files: Path) -> None:
    """Each by itself, by the validator that knows the real CRDs, CEL rules and the operators' own."""
    if not _VALIDATOR.is_file():
        pytest.skip(f"the CRDs are not here: {_VALIDATOR} is absent")
    ignored = [argument for text in _MADE_ELSEWHERE for argument in ("--ignore-warning", text)]
    found = subprocess.run(
        [sys.executable, _VALIDATOR, "--strict", "--each", *ignored, *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_manifests_are_valid(tmp_path: Path) -> None:
    paths = []
    for form in _FORMS:
        paths.append(tmp_path / f"{form.replace('/', '-')}.yaml")
        paths[-1].write_text(yaml.safe_dump_all(_objects(form)), encoding="utf-8")
    _assert_valid(*paths)


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
    _assert_valid(*paths)


def test_scanner_finds_nothing_but_what_is_excepted(tmp_path: Path) -> None:
    """checkov, which looks into plain pods only; `.checkov.yaml` says what is excepted and why."""
    program = shutil.which("checkov", path=f"{ROOT / 'build' / 'checkov' / 'bin'}:{os.environ.get('PATH', '')}")
    if program is None:
        absent("checkov is not installed (python -m venv build/checkov; build/checkov/bin/pip install checkov)")
    for form in _FORMS:
        objects = [*_objects(form), *_pods(_objects(form))]
        path = tmp_path / f"{form.replace('/', '-')}.yaml"
        path.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    command = [program, "--config-file", str(ROOT / ".checkov.yaml"), "--directory", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    for path in tmp_path.iterdir():
        assert f"File: /{path.name}" in found.stdout, f"nothing was looked at in {path.name}"


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


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_say_which_environment_they_are(overlay: str) -> None:
    """`just deploy` refuses a cluster that has another one."""
    namespace = find(rendered(KUBERAY / "overlays" / overlay), "Namespace", "circles")
    assert namespace["metadata"]["labels"]["environment"] == overlay


@pytest.mark.parametrize(
    ("overlay", "is_open"), [("local", True), ("dev", True), ("stage", False), ("prod", False)], ids=OVERLAYS
)
def test_open_by_accident_are_only_those_that_are_for_trying(overlay: str, is_open: bool) -> None:
    """Elsewhere no ingress pod starts without the secret of the keys, nor serves with an empty one."""
    container = _group(list(rendered(KUBERAY / "overlays" / overlay)), "ingress")["template"]["spec"]["containers"][0]
    (keys,) = (each for each in container["env"] if each["name"] == "API_KEYS")
    assert keys["valueFrom"]["secretKeyRef"] == {"name": "circles-api-keys", "key": "API_KEYS", "optional": is_open}
    required = {"name": "REQUIRE_API_KEYS", "value": "true"}  # a secret may be there, and empty
    assert (required in container["env"]) is not is_open


@pytest.mark.parametrize("form", _BESIDE)
def test_storage_commands_run_beside_the_data_of_the_application(form: str) -> None:
    """In a pod that has the ingress pods' image, addresses, secrets, claim and rights."""
    objects = _objects(form)
    pod = find(objects, "Pod", "circles-storage")
    ingress = _group(list(objects), "ingress")["template"]
    (container,), (theirs,) = pod["spec"]["containers"], ingress["spec"]["containers"]
    for key in ("image", "securityContext"):
        assert container[key] == theirs[key]
    assert pod["spec"]["securityContext"] == ingress["spec"]["securityContext"]
    assert _addresses(objects, container) == _addresses(objects, theirs)
    assert [each for each in theirs["envFrom"] if "secretRef" in each] == container.get("envFrom", [])
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert {each["mountPath"] for each in theirs["volumeMounts"]} == mounts
    claims = [each for each in ingress["spec"]["volumes"] if "persistentVolumeClaim" in each]
    assert [each for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each] == claims


def _addresses(objects: Sequence[Manifest], container: Manifest) -> dict[str, Any]:
    """Where rows and bytes are, or which secrets say so."""
    found: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container["env"]:
        found[entry["name"]] = entry.get("value", entry.get("valueFrom"))
    return {name: found[name] for name in ("DATABASE_URL", "STORAGE_URL")}


@pytest.mark.parametrize(("policy", "port"), [("dns", 53), ("postgres", 5432), ("s3", 443)])
def test_storage_commands_reach_what_the_application_reaches(policy: str, port: int) -> None:
    objects = _objects("storage/bucket")
    labels = find(objects, "Pod", "circles-storage")["metadata"]["labels"]
    spec = find(objects, "NetworkPolicy", policy)["spec"]
    assert port in {each["port"] for rule in spec["egress"] for each in rule["ports"]}
    selector = spec["podSelector"]
    assert selector.get("matchLabels", {}).items() <= labels.items()
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        assert labels[each["key"]] in each["values"]


@pytest.mark.parametrize("form", [form for form in _FORMS if form.startswith("kserve")])
def test_model_server_brings_its_namespace_into_the_mesh(form: str) -> None:
    """And no overlay has it: whoever applied the one would take away what the other one says of it."""
    namespace = find(rendered(KUBERAY / form), "Namespace", "circles-serving")
    assert namespace["metadata"]["labels"]["istio.io/dataplane-mode"] == "ambient"
    for overlay in OVERLAYS:
        names = {(each["kind"], each["metadata"]["name"]) for each in rendered(KUBERAY / "overlays" / overlay)}
        assert ("Namespace", "circles-serving") not in names


def test_model_server_leaves_knative_its_ports() -> None:
    objects = rendered(KUBERAY / "kserve")
    (container,) = find(objects, "ServingRuntime", "circle-detector")["spec"]["containers"]
    arguments = dict(each.removeprefix("--").split("=") for each in container["args"])
    ports = {name: int(value) for name, value in arguments.items() if name.endswith("_port")}
    offered = re.findall(r'"--(\w+_port)"', (ROOT / "deployments" / "kserve_model.py").read_text(encoding="utf-8"))
    assert ports.keys() == {*offered} == {"http_port", "grpc_port"}
    assert not _QUEUE_PROXY_PORTS & set(ports.values())
    assert [each["containerPort"] for each in container["ports"]] == [ports["http_port"]]
    rules = find(objects, "AuthorizationPolicy", "circle-detector")["spec"]["rules"]
    (monitoring,) = (rule for rule in rules if "monitoring" in str(rule["from"]))
    assert monitoring["to"] == [{"operation": {"ports": [str(ports["http_port"]), "9091"]}}]


def test_local_environment_fits_the_machine_that_it_asks_for() -> None:
    """With a model server of an older version beside the newer one."""
    cluster = _spec(list(rendered(KUBERAY / "overlays" / "local")))["rayClusterConfig"]
    (model_server,) = find(rendered(KUBERAY / "kserve" / "local"), "ServingRuntime", "circle-detector")["spec"][
        "containers"
    ]
    resources = [cluster["autoscalerOptions"]["resources"], *(2 * [model_server["resources"]])]
    resources += 2 * [{"requests": {"cpu": "25m", "memory": "0Mi"}}]  # Knative's queue-proxy
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        resources += group.get("maxReplicas", 1) * [container["resources"]]
    millicores, mib = _RESERVED_BY_OTHERS
    for each in resources:
        cpu, memory = str(each["requests"]["cpu"]), each["requests"]["memory"]
        millicores += int(cpu.removesuffix("m")) if cpu.endswith("m") else int(cpu) * 1000
        mib += int(memory[:-2]) * _MIB[memory[-2:]]
    script = (KUBERAY / "cluster" / "up.sh").read_text(encoding="utf-8")
    cores = re.search(r"^cores=(\d+)$", script, re.MULTILINE)
    gib = re.search(r"^memory_bytes=\$\(\((\d+) \* 1024 \* 1024 \* 1024\)\)$", script, re.MULTILINE)
    assert cores is not None
    assert gib is not None
    assert millicores < int(cores[1]) * 1000
    assert mib < int(gib[1]) * 1024


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
