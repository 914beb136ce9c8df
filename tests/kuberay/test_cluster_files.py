"""What the files of `kuberay/cluster` say twice, or say of others, agrees."""

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import httpx2
import pytest
import yaml

from serve_app.processes import ROOT
from tests.conftest import SHARED
from tests.kuberay.certificates import Authority
from tests.kuberay.checkout import CLUSTER
from tests.kuberay.manifests import find, rendered

VERSIONS = dict(re.findall(r"^(\w+)=(.*)$", (CLUSTER / "versions.env").read_text(encoding="utf-8"), re.MULTILINE))
COMMON = (CLUSTER / "common.sh").read_text(encoding="utf-8")


def setting(name: str) -> str:
    """A variable of common.sh."""
    found = re.search(rf'^{name}="?(.*?)"?$', COMMON, re.MULTILINE)
    assert found is not None
    return found[1]


def documents(file: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((CLUSTER / file).read_text(encoding="utf-8")) if each]


def values(release: str) -> Any:
    """What a Helm release is told."""
    return yaml.safe_load((CLUSTER / "values" / f"{release}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("CERT_MANAGER_VERSION", "cert-manager/cert-manager"),
        ("ISTIO_VERSION", "istio/istio"),
        ("KUBERAY_VERSION", "ray-project/kuberay"),
        ("GATEWAY_API_VERSION", "kubernetes-sigs/gateway-api"),
        ("KNATIVE_VERSION", "knative/serving"),
    ],
)
def test_versions_are_those_that_the_manifests_are_checked_against(name: str, repository: str) -> None:
    """But for KServe, whose CRDs are at hand in an older version than its server (below) has."""
    table = SHARED / "k8s" / "crds" / "VERSIONS.md"
    if not table.is_file():
        pytest.skip(f"the CRDs' versions are not in {table}")
    found = re.search(rf"\| {repository}, [^|]*\| (\S+) \|", table.read_text(encoding="utf-8"))
    assert found is not None
    assert VERSIONS[name].removeprefix("knative-").removeprefix("v") == found[1].removeprefix("knative-").removeprefix(
        "v"
    )


def test_kserve_is_that_of_the_model_server() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"kserve=={VERSIONS['KSERVE_VERSION'].removeprefix('v')}" in extras["kserve"]


def test_scripts_name_no_version_and_no_address_of_their_own() -> None:
    """Pages for people, and the application itself, apart."""
    for script in CLUSTER.glob("*.sh"):
        text = script.read_text(encoding="utf-8")
        assert re.findall(r"(?:oci|https)://[^\s\"]*(?:charts|releases/download)", text) == [], script
        assert re.findall(r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])", text.replace("127.0.0.1", "")) == [], script
    used = set(re.findall(r"\$\{?([A-Z_]+)", "".join(script.read_text() for script in CLUSTER.glob("*.sh"))))
    assert set(VERSIONS) <= used


def test_ports_lead_from_this_machine_to_the_gateway() -> None:
    (cluster,) = documents("kind.yaml")
    (node,) = cluster["nodes"]
    published = {mapping["hostPort"]: mapping["containerPort"] for mapping in node["extraPortMappings"]}
    gateway = {port["port"]: port.get("nodePort") for port in values("istio-ingressgateway")["service"]["ports"]}
    assert published == {80: gateway[80], 443: gateway[443]}
    assert [setting("http_node_port"), setting("https_node_port")] == [str(gateway[80]), str(gateway[443])]
    # Nobody else on the network is let in.
    assert {mapping["listenAddress"] for mapping in node["extraPortMappings"]} == {"127.0.0.1"}
    assert cluster["name"] == setting("cluster")


def test_kserve_and_knative_have_one_domain() -> None:
    configuration = next(each for each in documents("knative.yaml") if each["metadata"]["name"] == "config-domain")
    (domain,) = configuration["data"]
    assert values("kserve")["kserve"]["controller"]["gateway"]["domain"] == domain
    assert f".{domain}:" in (CLUSTER / "endpoints.sh").read_text(encoding="utf-8")


def test_who_talks_to_the_applications_pods_is_in_the_mesh() -> None:
    namespaces = {each["metadata"]["name"]: each["metadata"]["labels"] for each in documents("namespaces.yaml")}
    assert set(namespaces) == {"kuberay-operator", "knative-serving"}
    assert all(labels == {"istio.io/dataplane-mode": "ambient"} for labels in namespaces.values())


def test_manifests_and_scripts_mean_the_same_objects() -> None:
    application, model_server = (rendered(ROOT / folder) for folder in setting("kustomizations").split())
    (gateway,) = (each for each in application if each["kind"] == "Gateway")
    https = gateway["spec"]["servers"][1]
    assert https["hosts"] == [setting("host")]
    certificate = find(application, "Certificate", https["tls"]["credentialName"])
    assert (certificate["metadata"]["namespace"], certificate["spec"]["secretName"]) == ("istio-system", "circles-tls")
    assert gateway["spec"]["selector"] == {"istio": "ingressgateway"}
    assert find(application, "RayService", "circles")["metadata"]["namespace"] == "circles"
    assert find(model_server, "InferenceService", "circle-detector")["metadata"]["namespace"] == "circles-serving"


def test_images_are_those_that_are_built_and_loaded() -> None:
    images = set()
    for folder in setting("kustomizations").split():
        images |= set(re.findall(r"'image': '([^']*circles[^']*)'", str(rendered(ROOT / folder))))
    assert images == {"circles:local", "circles-kserve:local"}
    built = re.findall(r"^ +image (\S+) (\S+)", (CLUSTER / "up.sh").read_text(encoding="utf-8"), re.MULTILINE)
    assert [f"{name}:local" for name, _ in built] == ["circles:local", "circles-kserve:local"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert {target for _, target in built} <= set(re.findall(r" AS (\S+)$", dockerfile, re.MULTILINE))


def test_folder_of_the_claim_is_the_users_of_the_image() -> None:
    application = rendered(ROOT / setting("kustomizations").split()[0])
    path = find(application, "PersistentVolume", "circles-data")["spec"]["hostPath"]["path"]
    made = re.search(r"install -d -o (\d+) -g (\d+) -m \d+ (\S+)", (CLUSTER / "install.sh").read_text())
    assert made is not None
    assert made[3] == path
    groups = find(application, "RayService", "circles")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (ingress,) = (group for group in groups if group["groupName"] == "ingress")
    security = ingress["template"]["spec"]["securityContext"]
    assert [security["runAsUser"], security["runAsGroup"]] == [int(made[1]), int(made[2])]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("dev", ".venv/bin/python -m serve_app dev"),
        ("dev --kserve", ".venv/bin/python -m serve_app dev --kserve"),
        ("dev --k8s", "kuberay/cluster/dev.sh"),
        ("dev -k --clean", "kuberay/cluster/dev.sh --clean"),
        ("test", ".venv/bin/python -m pytest"),
        ("test --k8s", "kuberay/cluster/up.sh && kuberay/cluster/check.sh"),
        ("clean", ".venv/bin/python -m serve_app stop"),
        ("clean --k8s", "kuberay/cluster/down.sh"),
        ("clean --k8s --force", "kuberay/cluster/down.sh --force"),
        ("status --k8s", "kuberay/cluster/status.sh"),
        ("endpoints --k8s", "kuberay/cluster/endpoints.sh"),
        ("k8s-logs", "kuberay/cluster/logs.sh"),
        ("k8s-logs -f", "kuberay/cluster/logs.sh --follow"),
        ("k8s-logs --context prod", "kuberay/cluster/logs.sh --context 'prod'"),
        ("deploy prod --context name --yes", 'kuberay/cluster/deploy.sh "$@"'),
    ],
)
def test_words_lead_to_scripts(words: str, command: str) -> None:
    just = Path(sys.executable).parent / "just"
    done = subprocess.run(
        [just, "--dry-run", "--justfile", ROOT / "justfile", *words.split()], capture_output=True, text=True, check=True
    )
    said = [" ".join(line.split()) for line in done.stderr.splitlines()]
    assert said[-1] == command
    for script in re.findall(r"kuberay/\S+\.sh", command):
        assert (ROOT / script).stat().st_mode & 0o100


class _Answering(BaseHTTPRequestHandler):
    """Says that all is well."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def https_url(tmp_path: Path) -> Iterator[str]:
    """Of a server with a certificate of an authority that nobody knows, authority.pem."""
    issued = Authority(tmp_path, "authority").issue_for_hosts("server", ["localhost"])
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answering) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_clients_trust_the_authority_that_check_names(
    https_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    """That of the tests and of the evaluation, and that which asks whether the gateway answers."""
    stranger = Authority(tmp_path, "stranger")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem" if is_trusted else stranger.certificate))
    health = [sys.executable, "-m", "serve_app", "health", "--url", https_url]
    asked = subprocess.run(health, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (asked.returncode == 0) is is_trusted, asked.stdout + asked.stderr
    if is_trusted:
        assert httpx2.get(https_url).status_code == 200
    else:
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            httpx2.get(https_url)
