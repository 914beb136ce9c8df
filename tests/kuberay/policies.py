"""Istio's policies as an Envoy enforces them: who may connect to a pod, and what may pass the gateway.

In ambient mode ztunnel enforces the pods' policies, by the same rules: the client's certificate is that of the mesh,
and says which service account it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.kuberay.fields import Fields, NotUnderstoodError, read_spec
from tests.kuberay.manifests import Manifest

JWT_FILTER = "envoy.filters.http.jwt_authn"
_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
_TRUST_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Workload:
    """Pods that have the same policies."""

    namespace: str
    service_account: str
    labels: Mapping[str, str]

    @property
    def uri(self) -> str:
        """What the certificate says that the mesh gives them."""
        return f"spiffe://{_TRUST_DOMAIN}/ns/{self.namespace}/sa/{self.service_account}"


GATEWAY = Workload("istio-system", "istio-ingressgateway", {"istio": "ingressgateway"})


def takes_plain_text(objects: Sequence[Manifest], workload: Workload) -> bool:
    """Whether connections without a certificate of the mesh are taken too, as they are where no policy says STRICT."""
    modes = [
        spec.part("mtls").take_one_of("mode", "STRICT", "PERMISSIVE")
        for spec in _specs_for(objects, "PeerAuthentication", workload)
    ]
    if len(modes) > 1:
        raise NotUnderstoodError(f"{len(modes)} PeerAuthentications for one workload; which of them wins is not known")
    return modes != ["STRICT"]


def network_filters(objects: Sequence[Manifest], workload: Workload, ports: Mapping[int, int]) -> list[dict[str, Any]]:
    """What judges connections to a pod; empty where no AuthorizationPolicy is about it.

    Args:
        ports: Where on this machine the pod's ports are.
    """
    return [
        {
            "name": "envoy.filters.network.rbac",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.network.rbac.v3.RBAC",
                "stat_prefix": "policy.",
                "rules": {"action": action, "policies": policies},
            },
        }
        for action, policies in _policies(objects, workload, _ConnectionRules(ports))
    ]


def http_filters(objects: Sequence[Manifest], workload: Workload, keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """What judges requests: their tokens, where a RequestAuthentication says so, and then they.

    Args:
        keys: JSON web key sets by their address; Istio fetches them itself and hands them to its Envoys.
    """
    filters = []
    for number, spec in enumerate(_specs_for(objects, "RequestAuthentication", workload)):
        providers = {}
        for index, rule in enumerate(spec.parts("jwtRules")):
            providers[f"origin-{index}"] = {
                "issuer": rule.take("issuer"),
                "audiences": rule.take("audiences"),
                "local_jwks": {"inline_string": keys[rule.take("jwksUri")]},
                "payload_in_metadata": "payload",
            }
        requirements: list[dict[str, Any]] = [{"provider_name": name} for name in providers]
        any_of = {"requirements": [*requirements, {"allow_missing": {}}]}
        if number:
            raise NotUnderstoodError("several RequestAuthentications for one workload are not translated")
        authentication = {
            "@type": f"{_EXTENSIONS}.http.jwt_authn.v3.JwtAuthentication",
            "providers": providers,
            "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": any_of}}],
            "bypass_cors_preflight": True,
        }
        filters.append({"name": JWT_FILTER, "typed_config": authentication})
    for action, policies in _policies(objects, workload, _RequestRules()):
        rules = {"action": action, "policies": policies}
        typed_config = {"@type": f"{_EXTENSIONS}.http.rbac.v3.RBAC", "rules": rules}
        filters.append({"name": "envoy.filters.http.rbac", "typed_config": typed_config})
    return filters


class _ConnectionRules:
    """What can be said of a connection."""

    def __init__(self, ports: Mapping[int, int]) -> None:
        self._ports = ports

    def principal(self, source: Fields) -> dict[str, Any]:
        parts = []
        if "principals" in source:
            parts.append([_authenticated(_text(f"spiffe://{each}")) for each in source.take("principals")])
        if "namespaces" in source:
            names = [_plain(each, f"{source.path}.namespaces") for each in source.take("namespaces")]
            parts.append([_authenticated(_regex(f".*/ns/{name}/.*")) for name in names])
        return _all_of(parts, "and_ids", "or_ids", "ids")

    def permission(self, operation: Fields) -> dict[str, Any]:
        ports = operation.take("ports")
        unknown = [port for port in ports if int(port) not in self._ports]
        if unknown:
            raise NotUnderstoodError(f"{operation.path}.ports: a pod that is tried has no port {', '.join(unknown)}")
        return _any_of([{"destination_port": self._ports[int(port)]} for port in ports], "or_rules", "rules")


class _RequestRules:
    """What can be said of a request."""

    def principal(self, source: Fields) -> dict[str, Any]:
        values = source.take("notRequestPrincipals")
        return {"not_id": _any_of([_token_of(value) for value in values], "or_ids", "ids")}

    def permission(self, operation: Fields) -> dict[str, Any]:
        excepted: list[dict[str, Any]] = [{"url_path": {"path": _text(path)}} for path in operation.take("notPaths")]
        # Ports of the gateway that no Gateway of the application opens.
        excepted += [{"destination_port": int(port)} for port in operation.take("notPorts", [])]
        return {"not_rule": _any_of(excepted, "or_rules", "rules")}


def _policies(
    objects: Sequence[Manifest], workload: Workload, rules: _ConnectionRules | _RequestRules
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Action and Envoy's policies; those that deny come first. ALLOW without any admits nobody."""
    by_action: dict[str, dict[str, Any]] = {}
    for number, spec in enumerate(_specs_for(objects, "AuthorizationPolicy", workload)):
        action = spec.take_one_of("action", "ALLOW", "DENY", default="ALLOW")
        policies = by_action.setdefault(action, {})
        for index, rule in enumerate(spec.parts("rules")):
            principals = [rules.principal(each.part("source")) for each in rule.parts("from")]
            permissions = [rules.permission(each.part("operation")) for each in rule.parts("to")]
            policies[f"{number}.{index}"] = {
                "principals": principals or [{"any": True}],
                "permissions": permissions or [{"any": True}],
            }
    for action in ("DENY", "ALLOW"):
        if action in by_action:
            yield action, by_action[action]


def _specs_for(objects: Sequence[Manifest], kind: str, workload: Workload) -> Iterator[Fields]:
    """Policies of this kind for this workload, each of which has to be read wholly."""
    for each in objects:
        if each["kind"] != kind or each["metadata"]["namespace"] not in (workload.namespace, GATEWAY.namespace):
            continue
        selected = each["spec"].get("selector", {}).get("matchLabels", {})
        if each["metadata"]["namespace"] == GATEWAY.namespace and not selected:
            raise NotUnderstoodError(
                f"{kind}/{each['metadata']['name']}: in the mesh's root namespace, so for all pods"
            )
        if each["metadata"]["namespace"] != workload.namespace or not selected.items() <= workload.labels.items():
            continue
        with read_spec(each) as spec:
            spec.part("selector").take("matchLabels", {})
            yield spec


def _token_of(value: str) -> dict[str, Any]:
    """Whoever has a valid token of this issuer and subject."""
    issuer, _, subject = value.rpartition("/")
    claims = [("iss", _text(issuer)), ("sub", _text(subject))]
    return {
        "and_ids": {
            "ids": [
                {
                    "metadata": {
                        "filter": JWT_FILTER,
                        "path": [{"key": "payload"}, {"key": claim}],
                        "value": {"string_match": match},
                    }
                }
                for claim, match in claims
            ]
        }
    }


def _authenticated(match: dict[str, Any]) -> dict[str, Any]:
    return {"authenticated": {"principal_name": match}}


def _text(value: str) -> dict[str, Any]:
    """Istio's notation: as it is, or with a star at one end."""
    if value == "*":
        return _regex(".+")
    if "*" in value.strip("*"):
        raise NotUnderstoodError(f"{value}: a star within")
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"suffix": value[1:]} if value.startswith("*") else {"exact": value}


def _plain(value: str, path: str) -> str:
    if "*" in value:
        raise NotUnderstoodError(f"{path}: {value!r} with a star is not translated")
    return value


def _regex(value: str) -> dict[str, Any]:
    return {"safe_regex": {"regex": value}}


def _any_of(parts: list[dict[str, Any]], name: str, inner: str) -> dict[str, Any]:
    return parts[0] if len(parts) == 1 else {name: {inner: parts}}


def _all_of(alternatives: list[list[dict[str, Any]]], and_name: str, or_name: str, inner: str) -> dict[str, Any]:
    """One of each of these lists; anything where there are none."""
    parts = [_any_of(each, or_name, inner) for each in alternatives]
    if not parts:
        return {"any": True}
    return parts[0] if len(parts) == 1 else {and_name: {inner: parts}}
