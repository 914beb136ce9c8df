"""``python -m serve_app.manifests FOLDER...``: refuses manifests whose parts do not fit each other.

What the API server and the operators check themselves is left to them; this is about what they would take: settings
that cannot work, two writers of one file, replicas without a pod, ports that differ.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from circles.settings import Settings, why_refused
from circles.storage.engine import is_sqlite
from circles.storage.images import is_local, local_folder

Manifest = dict[str, Any]

# What stands in for an address that is in a secret: only its kind matters here, and SQLite needs no secret.
_DATABASE_ELSEWHERE = "postgresql+psycopg://database/circles"
_FAST_PATH = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


def problems(objects: Sequence[Manifest]) -> list[str]:
    """What is wrong with the rendered objects of an environment, a sentence each."""
    return list(_problems(_Application(objects)))


class _Application:
    """The parts of a rendered application."""

    def __init__(self, objects: Sequence[Manifest]) -> None:
        self.objects = objects
        (service,) = self.of_kind("RayService")
        self.spec: Manifest = service["spec"]
        self.cluster: Manifest = self.spec["rayClusterConfig"]
        self.serve_config: Manifest = yaml.safe_load(self.spec["serveConfigV2"])
        self.groups: dict[str, Manifest] = {group["groupName"]: group for group in self.cluster["workerGroupSpecs"]}

    def of_kind(self, kind: str) -> list[Manifest]:
        return [each for each in self.objects if each["kind"] == kind]

    def pods(self) -> dict[str, Manifest]:
        """The pod specs by group, the head's too."""
        groups = {"head": self.cluster["headGroupSpec"], **self.groups}
        return {name: group["template"]["spec"] for name, group in groups.items()}

    def container(self, group: str) -> Manifest:
        container: Manifest = self.pods()[group]["containers"][0]
        return container

    def variables(self, group: str) -> dict[str, str]:
        """A group's environment, as far as it is in the open."""
        maps = {each["metadata"]["name"]: each["data"] for each in self.of_kind("ConfigMap")}
        variables: dict[str, str] = {}
        for source in self.container(group).get("envFrom", []):
            variables |= maps.get(source.get("configMapRef", {}).get("name"), {})
        for entry in self.container(group).get("env", []):
            is_database = entry["name"] == "DATABASE_URL"
            variables[entry["name"]] = entry.get("value", _DATABASE_ELSEWHERE if is_database else "")
        return variables

    def settings(self) -> Settings:
        """As the ingress will read them."""
        names = {name.upper() for name in Settings.model_fields}
        given = {key.lower(): value for key, value in self.variables("ingress").items() if key in names and value}
        (application,) = self.serve_config["applications"]
        return Settings.model_validate({**given, **application.get("args", {})})

    def claims(self, group: str) -> dict[str, str]:
        """Names of the claims that a group's pods mount, with the paths."""
        volumes = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in self.pods()[group].get("volumes", [])
            if "persistentVolumeClaim" in volume
        }
        mounts = self.container(group)["volumeMounts"]
        return {volumes[mount["name"]]: mount["mountPath"] for mount in mounts if mount["name"] in volumes}


def _problems(application: _Application) -> Iterator[str]:
    try:
        settings = application.settings()
    except ValidationError as error:
        yield f"the settings are refused: {why_refused(error)}"
        return
    yield from _writers(application, settings)
    yield from _claims(application)
    yield from _replicas(application, settings)
    yield from _ports(application)
    yield from _fast_path(application)
    yield from _tokens(application)


def _writers(application: _Application, settings: Settings) -> Iterator[str]:
    """One SQLite file, or one folder, has one writer."""
    kept_here = [
        (what, path)
        for what, is_here, path in (
            ("SQLite", is_sqlite(settings.database_url), settings.database_url.removeprefix("sqlite:///")),
            ("the folder", is_local(settings.storage_url), str(local_folder(settings.storage_url))),
        )
        if is_here
    ]
    for what, path in kept_here:
        if application.spec["upgradeStrategy"]["type"] != "None":
            yield f"{what} has one writer, but this upgradeStrategy starts a second cluster beside the first: say None"
        if application.groups["ingress"]["maxReplicas"] != 1:
            yield f"{what} has one writer, but the ingress group may have several pods"
        mounts = application.claims("ingress").values()
        if not any(Path(path).is_relative_to(mount) for mount in mounts):
            yield f"{what} would be at {path}, which is on no claim, and goes with the pod"


def _claims(application: _Application) -> Iterator[str]:
    """A claim that one node mounts is for one pod."""
    access = {
        each["metadata"]["name"]: each["spec"]["accessModes"] for each in application.of_kind("PersistentVolumeClaim")
    }
    users: dict[str, list[str]] = {}
    for group in application.pods():
        for claim in application.claims(group):
            users.setdefault(claim, []).append(group)
    for claim, groups in users.items():
        if "ReadWriteMany" in access.get(claim, []):
            continue
        most = [1 if group == "head" else application.groups[group]["maxReplicas"] for group in groups]
        if sum(most) > 1:
            yield f"claim {claim} is mounted by one node at a time, but by up to {sum(most)} pods ({', '.join(groups)})"
        if application.spec["upgradeStrategy"]["type"] != "None":
            yield f"claim {claim} is mounted by one node, but this upgradeStrategy starts a second cluster: say None"


def _replicas(application: _Application, settings: Settings) -> Iterator[str]:
    """Every replica finds a pod, and the ingress is never at zero, where nothing would wake it."""
    ingress, detector = application.groups["ingress"], application.groups["detector"]
    if not ingress["minReplicas"] == ingress["replicas"] == ingress["maxReplicas"] == settings.ingress_replicas:
        yield (
            f"INGRESS_REPLICAS is {settings.ingress_replicas}, one a pod, but the ingress group has "
            f"{ingress['minReplicas']} to {ingress['maxReplicas']} pods"
        )
    if settings.model_server_url is None:
        room = detector["maxReplicas"] * float(detector["rayStartParams"]["num-cpus"])
        wanted = settings.detector_max_replicas * settings.detector_num_cpus
        if wanted > room:
            yield f"DETECTOR_MAX_REPLICAS want {wanted:g} cores, but the detector group has {room:g} at most"
    (deployed,) = application.serve_config["applications"]
    options = {each["name"]: each.get("ray_actor_options", {}) for each in deployed["deployments"]}
    if "ingress" not in options.get("Ingress", {}).get("resources", {}):
        yield "the ingress is not pinned to the pods of its group by the resource `ingress`"


def _ports(application: _Application) -> Iterator[str]:
    """Serve, the pods, their probes and the Service name the same ports."""
    wanted = {
        "serve": application.serve_config["http_options"]["port"],
        "serve-grpc": application.serve_config["grpc_options"]["port"],
    }
    for group in application.pods():
        container = application.container(group)
        listed = {port["name"]: port["containerPort"] for port in container["ports"] if port["name"] in wanted}
        if listed != wanted:
            yield f"Serve listens on {wanted}, but the {group} pods list {listed}"
        probe = " ".join(container.get("readinessProbe", {}).get("exec", {}).get("command", []))
        if probe and f":{wanted['serve']}/-/healthz" not in probe:
            yield f"the readiness probe of the {group} pods does not ask the proxy on port {wanted['serve']}"
    ports = application.spec["serveService"]["spec"]["ports"]
    offered = {port["name"]: port["port"] for port in ports}
    if offered != wanted or any(port["targetPort"] != port["port"] for port in ports):
        yield f"Serve listens on {wanted}, but its Service offers {offered}"


def _fast_path(application: _Application) -> Iterator[str]:
    """HAProxy and the throughput settings: with one of the two, a node has no proxy."""
    for group in application.pods():
        chosen = {application.variables(group).get(name) == "1" for name in _FAST_PATH}
        if len(chosen) > 1:
            yield f"the {group} pods have one of {' and '.join(_FAST_PATH)}: set both or neither"


def _tokens(application: _Application) -> Iterator[str]:
    """Tokens are asked for at the gateway that there is: Istio's own, or that of the Gateway API."""
    gateways = application.of_kind("Gateway")
    is_gateway_api = any(each["apiVersion"].startswith("gateway.networking.k8s.io/") for each in gateways)
    for each in application.of_kind("RequestAuthentication"):
        if is_gateway_api and "targetRefs" not in each["spec"]:
            yield (
                f"RequestAuthentication {each['metadata']['name']} guards no gateway of the Gateway API, which would "
                "let everybody in: list `jwt` before `gateway-api`"
            )


def main(folders: Annotated[list[Path], typer.Argument(help="Each with a kustomization of the application.")]) -> None:
    """Refuse manifests whose parts do not fit each other."""
    is_well = True
    for folder in folders:
        text = subprocess.run(["kubectl", "kustomize", folder], stdout=subprocess.PIPE, check=True, text=True).stdout  # noqa: S603, S607
        for problem in problems([each for each in yaml.safe_load_all(text) if each]):
            is_well = False
            print(f"{folder}: {problem}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(0 if is_well else 1)


if __name__ == "__main__":
    typer.run(main)
