"""A rendered RayService as pods of this machine: what the KubeRay operator would make of it, field by field.

Every field of a pod is either acted on, or on one of the lists below with the reason why it is not; one that is neither
is an error, so that nothing is added to the manifests that the tests do not know of.
"""

import json
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.kuberay.manifests import Manifest, find
from tests.kuberay.pods import Pod, PodNetwork

# What this machine cannot do, or need not: it has one kernel, one image and no API server.
_IGNORED = {
    "group": {"groupName", "replicas", "minReplicas", "maxReplicas", "serviceType"},
    "template": {"metadata"},
    "pod": {
        "serviceAccountName",  # there is no API server to ask
        "automountServiceAccountToken",
        "topologySpreadConstraints",  # there is one node
        "terminationGracePeriodSeconds",  # read by the tests that end a pod
        "tolerations",
    },
    "container": {
        "name",
        "image",  # the checkout and its virtual environment
        "imagePullPolicy",
        "ports",  # a pod has all of them; the tests ask those that are named
        "resources",  # sizes
        "readinessProbe",  # run by the tests
        "livenessProbe",
        "lifecycle",
    },
}
_SECURITY: dict[str, Manifest] = {
    "pod": {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
    # A pod of this machine is made so, always.
    "container": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    },
}
# Sizes; this machine is small.
_REPLACED_PARAMETERS = {"object-store-memory": "100000000"}


@dataclass(frozen=True)
class RayService:
    """A rendered RayService and what it refers to."""

    objects: Sequence[Manifest]
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Those that people make by hand: name -> key -> value."""
    redis_address: str = ""
    """Host and port of what `gcsFaultToleranceOptions` names."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    """What the operator would write into the secret of `authOptions`."""

    @property
    def spec(self) -> Manifest:
        """Of the RayService."""
        spec: Manifest = find(self.objects, "RayService", "circles")["spec"]
        return spec

    @property
    def cluster(self) -> Manifest:
        """Of the RayCluster that the operator makes."""
        cluster: Manifest = self.spec["rayClusterConfig"]
        return cluster

    @property
    def serve_config(self) -> Manifest:
        """What Serve is told."""
        config: Manifest = yaml.safe_load(self.spec["serveConfigV2"])
        return config

    def group(self, name: str) -> Manifest:
        """The head group or a worker group."""
        if name == "head":
            head: Manifest = self.cluster["headGroupSpec"]
            return head
        (group,) = [each for each in self.cluster["workerGroupSpecs"] if each["groupName"] == name]
        return dict(group)

    def container(self, name: str) -> Manifest:
        """The one container of a group's pods."""
        (container,) = self.group(name)["template"]["spec"]["containers"]
        return dict(container)

    def pod(self, group_name: str, network: PodNetwork, number: int, folder: Path, head: Pod | None = None) -> Pod:
        """A pod of a group, not started.

        Args:
            folder: For its log, and for the claims that it mounts.
            head: Of the cluster; None for the head itself.
        """
        group = self.group(group_name)
        _check_fields(group, {"rayStartParams", "labels", "template"} | _IGNORED["group"], f"group {group_name}")
        _check_fields(group["template"], {"spec"} | _IGNORED["template"], "template")
        spec = group["template"]["spec"]
        _check_fields(
            spec, {"containers", "initContainers", "volumes", "securityContext"} | _IGNORED["pod"], f"pod {group_name}"
        )
        container = self.container(group_name)
        _check_fields(
            container,
            {"env", "envFrom", "volumeMounts", "securityContext"} | _IGNORED["container"],
            f"container {group_name}",
        )
        assert {**spec["securityContext"], "seccompProfile": None} == {**_SECURITY["pod"], "seccompProfile": None}
        assert container["securityContext"] == _SECURITY["container"]
        empty, bound = self._mounts(spec, container, folder)
        name = f"{group_name}-{number}"
        return Pod(
            name,
            network,
            number,
            # As the operator writes it, for the shell to take apart.
            f"ulimit -n 65536; ray start {self._start_parameters(group, head)}",
            {**self._operators_variables(name, group_name, head), **self.variables(container)},
            folder / f"{name}.log",
            ["/dev/shm", *empty],
            bound,
        )

    def init_pods(self, group_name: str, network: PodNetwork, number: int, folder: Path) -> Iterator[Pod]:
        """A pod for each init container of a group: one after the other, before the group's own."""
        spec = self.group(group_name)["template"]["spec"]
        for container in spec.get("initContainers", []):
            used = {"command", "env", "envFrom", "volumeMounts", "securityContext"}
            _check_fields(container, used | _IGNORED["container"], f"init container of {group_name}")
            assert container["securityContext"] == _SECURITY["container"]
            empty, bound = self._mounts(spec, container, folder)
            name = f"{group_name}-{container['name']}"
            program = f"exec {shlex.join(container['command'])}"
            yield Pod(name, network, number, program, self.variables(container), folder / f"{name}.log", empty, bound)

    def variables(self, container: Manifest) -> dict[str, str]:
        """A container's environment, out of ConfigMaps, Secrets and itself."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            ((kind, reference),) = source.items()
            if kind == "configMapRef":
                variables |= find(self.objects, "ConfigMap", reference["name"])["data"]
            else:
                assert kind == "secretRef", kind
                variables |= self.secrets[reference["name"]]
        for entry in container.get("env", []):
            if "value" in entry:
                variables[entry["name"]] = entry["value"]
                continue
            if "fieldRef" in entry["valueFrom"]:
                assert entry["valueFrom"]["fieldRef"] == {"fieldPath": "metadata.labels['ray.io/node-type']"}
                variables[entry["name"]] = "head"
                continue
            reference = entry["valueFrom"]["secretKeyRef"]
            if reference["name"] in self.secrets:
                variables[entry["name"]] = self.secrets[reference["name"]][reference["key"]]
            else:
                assert reference.get("optional"), f"secret {reference['name']} is wanted"
        return variables

    def _mounts(self, spec: Manifest, container: Manifest, folder: Path) -> tuple[list[str], dict[str, Path]]:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        empty, bound = [], {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "emptyDir" in volume:
                empty.append(mount["mountPath"])
            else:
                claim = volume["persistentVolumeClaim"]["claimName"]
                find(self.objects, "PersistentVolumeClaim", claim)
                bound[mount["mountPath"]] = folder / claim
        return empty, bound

    def _operators_variables(self, name: str, group_name: str, head: Pod | None) -> dict[str, str]:
        address = {"RAY_ADDRESS": "127.0.0.1:6379"} if head is None else {"RAY_ADDRESS": f"{head.address}:6379"}
        assert self.cluster["authOptions"] == {"mode": "token"}
        variables = {
            **address,
            "RAY_PORT": "6379",
            "RAY_CLUSTER_NAME": "circles-test",
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": "headgroup" if head is None else group_name,
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }
        variables |= self._fault_tolerance(head)
        if head is None:
            assert self.cluster["enableInTreeAutoscaling"] is True
            assert self.cluster["autoscalerOptions"]["version"] == "v2"
            variables |= {"RAY_enable_autoscaler_v2": "true", "RAY_SERVE_KV_TIMEOUT_S": "5"}
        return variables

    def _fault_tolerance(self, head: Pod | None) -> dict[str, str]:
        options = self.cluster.get("gcsFaultToleranceOptions")
        if options is None:
            return {}
        _check_fields(options, {"redisAddress", "redisPassword"}, "gcsFaultToleranceOptions")
        if head is not None:
            return {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        password = options["redisPassword"]["valueFrom"]["secretKeyRef"]
        return {
            # Its Service's name, in a cluster.
            "RAY_REDIS_ADDRESS": self.redis_address,
            "REDIS_PASSWORD": self.secrets[password["name"]][password["key"]],
            "RAY_external_storage_namespace": "circles-test",
        }

    def _start_parameters(self, group: Manifest, head: Pod | None) -> str:
        parameters = {
            "block": "true",
            "metrics-export-port": "8080",
            "dashboard-agent-listen-port": "52365",
            **group["rayStartParams"],
            **_REPLACED_PARAMETERS,
        }
        if "labels" in group:
            parameters["labels"] = ",".join(f"{key}={value}" for key, value in group["labels"].items())
        if head is None:
            parameters |= {"head": "true", "port": "6379", "no-monitor": "true"}
            if "gcsFaultToleranceOptions" in self.cluster:
                parameters["redis-password"] = "$REDIS_PASSWORD"
        else:
            parameters["address"] = f"{head.address}:6379"
        return " ".join(_parameter(name, value) for name, value in sorted(parameters.items()))


def claims(service: RayService) -> Iterator[str]:
    """The names of the claims that pods of the application mount."""
    for group in service.cluster["workerGroupSpecs"]:
        for volume in group["template"]["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                yield volume["persistentVolumeClaim"]["claimName"]


def _parameter(name: str, value: str) -> str:
    return f"--{name}" if value == "true" else f"--{name}={value}"


def _check_fields(value: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = set(value) - known
    assert not unknown, (
        f"{where} has fields that these tests neither act on nor name as ignored: {json.dumps(sorted(unknown))}"
    )
