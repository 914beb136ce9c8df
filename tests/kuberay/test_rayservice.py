"""The rendered RayService, executed: its nodes as pods of this machine, deployed to as the operator does."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.kuberay.manifests import KUBERAY, OVERLAYS, Manifest, rendered
from tests.kuberay.pods import Pod, PodNetwork, forwarded
from tests.kuberay.ray_pods import RayService, claims
from tests.pictures import disc_jpeg
from tests.running import wait_until
from tests.servers import postgresql, redis, seaweedfs

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(400)]

_START_TIMEOUT_S = 120.0
_STARTS = 3
_ASK_PERIOD_S = 1.0
"""Between questions that cost the pods a process each."""
_WANTED_RESOURCES = """
import json
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
state = get_cluster_resource_state(GcsClient(address="127.0.0.1:6379"))
print(json.dumps([dict(each.request.resources_bundle) for each in state.pending_resource_requests]))
"""


@dataclass
class Cluster:
    """A running RayService of this machine; the tests are its operator, its kubelet and its autoscaler."""

    service: RayService
    network: PodNetwork
    folder: Path
    pods: dict[str, list[Pod]] = field(default_factory=lambda: {"head": [], "ingress": [], "detector": []})
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(3, 255)))

    @property
    def head(self) -> Pod:
        """The head, which has the same address in all its lives: that of its Service."""
        return self.pods["head"][0]

    def start_pod(self, group: str) -> Pod:
        """A further pod of a group; returns when its node is alive. One that ends before is started again, as the
        kubelet does: on a busy machine Ray's own patience of 30 s may not do."""
        is_head = group == "head"
        pod = self.service.pod(
            group, self.network, 2 if is_head else next(self.numbers), self.folder, None if is_head else self.head
        )
        self.pods[group].append(pod)
        for _ in range(_STARTS):
            pod.start()
            wait_until(lambda: self.is_alive(pod, group) or not pod.is_alive(), _START_TIMEOUT_S, _ASK_PERIOD_S)
            if pod.is_alive():
                return pod
            pod.kill()
        raise AssertionError(pod.log.read_text(errors="replace")[-3000:])

    def lose_pod(self, group: str) -> None:
        """Ends the first pod of a group at once."""
        self.pods[group].pop(0).kill()

    def deploy(self) -> None:
        """Gives Serve the application, and returns when all is ready."""
        answer = self.dashboard("PUT", "/api/serve/applications/", json=self.service.serve_config)
        assert answer.status_code == 200, answer.text
        self.scale_until(lambda: self.application()["status"] == "RUNNING")
        self.wait_until_ready("ingress")

    def scale_until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; starts a detector pod whenever there is work without room."""

        def holds() -> bool:
            if condition():
                return True
            group = self.service.group("detector")
            room = {"CPU": float(group["rayStartParams"]["num-cpus"])}
            fits = [wanted for wanted in self.wanted_resources() if _fits(wanted, room)]
            if fits and len(self.pods["detector"]) < group["maxReplicas"]:
                self.start_pod("detector")
            return False

        wait_until(holds, _START_TIMEOUT_S, _ASK_PERIOD_S)

    def wait_until_ready(self, group: str) -> None:
        """Returns when the readiness probe of the manifest, run in each of the group's pods, says so."""
        command = self.service.container(group)["readinessProbe"]["exec"]["command"]
        wait_until(lambda: all(pod.run(command).returncode == 0 for pod in self.pods[group]), 60, _ASK_PERIOD_S)

    def is_alive(self, pod: Pod, group: str) -> bool:
        """The liveness probe of the manifest."""
        get = self.service.container(group)["livenessProbe"]["httpGet"]
        try:
            return httpx2.get(f"http://{pod.address}:{get['port']}{get['path']}", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def dashboard(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The head's API, as the operator calls it."""
        headers = {"Authorization": f"Bearer {self.service.token}"}
        return httpx2.request(method, f"http://{self.head.address}:8265{path}", headers=headers, timeout=30, **options)

    def application(self) -> Manifest:
        """What Serve says of the application; nothing of it while a head starts."""
        nothing: Manifest = {"status": "UNKNOWN", "deployments": {}}
        try:
            answer = self.dashboard("GET", "/api/serve/applications/")
        except httpx2.TransportError:
            return nothing
        return dict(answer.json()["applications"].get("circles", nothing)) if answer.status_code == 200 else nothing

    def replicas(self, deployment: str) -> set[str]:
        """The addresses of the pods on which a deployment's running replicas are."""
        found = self.application()["deployments"].get(deployment, {"replicas": []})["replicas"]
        return {replica["node_ip"] for replica in found if replica["state"] == "RUNNING"}

    def wanted_resources(self) -> list[dict[str, float]]:
        """What the autoscaler would read: requests that no node has room for."""
        answer = self.head.run(["python", "-c", _WANTED_RESOURCES])
        assert answer.returncode == 0, answer.stderr
        wanted: list[dict[str, float]] = json.loads(answer.stdout.splitlines()[-1])
        return wanted

    def client(self) -> httpx2.Client:
        """Of a pod behind the Serve Service."""
        base_url = f"http://{self.pods['ingress'][0].address}:8000"
        return httpx2.Client(base_url=base_url, headers=self.key(), timeout=60)

    def key(self) -> dict[str, str]:
        """The header that lets a client in, where keys are wanted."""
        keys = self.service.secrets.get("circles-api-keys", {})
        return {"X-API-Key": keys["API_KEYS"]} if keys else {}

    def addresses(self, group: str) -> set[str]:
        """Of a group's pods."""
        return {pod.address for pod in self.pods[group]}


@contextlib.contextmanager
def _secrets(overlay: str, network: PodNetwork) -> Iterator[tuple[dict[str, dict[str, str]], str]]:
    """What people make by hand for an overlay, with real servers behind it; and the address of Redis."""
    keys = {"circles-api-keys": {"API_KEYS": "not-a-secret-either"}}
    if overlay != "prod":
        yield keys if overlay == "stage" else {}, ""
        return
    password = "not-a-secret"
    with contextlib.ExitStack() as started:
        database, bucket = started.enter_context(postgresql()), started.enter_context(seaweedfs())
        memory = started.enter_context(redis(password))

        def reachable(url: str) -> str:
            port = int(url.rpartition(":")[2].partition("/")[0])
            return url.replace(f"127.0.0.1:{port}", started.enter_context(forwarded(network, port)))

        credentials = {**bucket.variables, "AWS_ENDPOINT_URL": reachable(bucket.variables["AWS_ENDPOINT_URL"])}
        yield (
            {
                **keys,
                "circles-database": {"DATABASE_URL": reachable(database.url)},
                "circles-bucket": credentials,
                "circles-redis": {"password": password},
            },
            reachable(memory.url),
        )


@pytest.fixture(scope="module", params=OVERLAYS)
def cluster(
    request: pytest.FixtureRequest, network: PodNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The RayService of an overlay, ready: a head, its ingress pods, and as many detector pods as it has at least."""
    folder = tmp_path_factory.mktemp(request.param)
    with _secrets(request.param, network) as (secrets, redis_address):
        service = RayService(rendered(KUBERAY / "overlays" / request.param), secrets, redis_address)
        cluster = Cluster(service, network, folder)
        for claim in claims(service):
            (folder / claim).mkdir()
            (folder / claim).chmod(0o777)  # what fsGroup does
        try:
            for pod in service.init_pods("head", network, 2, folder):
                try:
                    pod.start()
                    assert pod.wait(60) == 0, pod.log.read_text()
                finally:
                    pod.kill()
            cluster.start_pod("head")
            groups = [name for name in ("ingress", "detector") for _ in range(service.group(name)["minReplicas"])]
            # Ray gives up a start after 30 s, and more of them at once take longer on a small machine.
            with ThreadPoolExecutor(2) as at_once:
                list(at_once.map(cluster.start_pod, groups))
            cluster.deploy()
            yield cluster
        finally:
            for pods in cluster.pods.values():
                for pod in pods:
                    pod.kill()


def _fits(wanted: dict[str, float], room: dict[str, float]) -> bool:
    return all(amount <= room.get(resource, 0.0) for resource, amount in wanted.items())


def _upload(client: httpx2.Client, seed: int) -> str:
    """Uploads a picture and returns its id; it may be pending."""
    answer = client.post("/images/", content=disc_jpeg(seed), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code in (201, 202), answer.text
    return str(answer.json()["image_id"])


def _are_done(client: httpx2.Client, image_ids: Iterable[str]) -> bool:
    return all(client.get(f"/images/{image_id}").json()["status"] == "done" for image_id in image_ids)


def test_pictures_are_kept_and_found(cluster: Cluster) -> None:
    """The ingress runs on the pods of its group, detectors on theirs; a group at zero gets a pod when there is work."""
    with cluster.client() as client:
        with ThreadPoolExecutor(1) as at_once:
            upload = at_once.submit(_upload, client, seed=1)
            cluster.scale_until(upload.done)
        image_id = upload.result()
        cluster.scale_until(lambda: _are_done(client, [image_id]))
        assert client.get(f"/images/{image_id}/objects").json()["count"] == 2
        assert client.get(f"/images/{image_id}/content").content == disc_jpeg(1)
    assert cluster.replicas("Ingress") == cluster.addresses("ingress")
    assert cluster.replicas("Detector") <= cluster.addresses("detector")
    assert cluster.replicas("Detector")
    for claim in claims(cluster.service):
        assert (cluster.folder / claim / "db.sqlite3").is_file()


def test_lost_detector_pod_is_replaced(cluster: Cluster) -> None:
    """What is uploaded without a detector waits for one, or is pending and done when there is one again."""
    with cluster.client() as client:
        while cluster.pods["detector"]:
            cluster.lose_pod("detector")
        with ThreadPoolExecutor(2) as at_once:
            uploads = [at_once.submit(_upload, client, seed) for seed in (2, 3)]
            cluster.scale_until(lambda: all(upload.done() for upload in uploads))
        image_ids = [upload.result() for upload in uploads]
        cluster.scale_until(lambda: _are_done(client, image_ids))
    assert cluster.replicas("Detector") <= cluster.addresses("detector")


@pytest.mark.parametrize("cluster", ["local", "prod"], indirect=True)
def test_lost_ingress_pod_comes_back_to_what_was_kept(cluster: Cluster) -> None:
    with cluster.client() as client:
        image_id = _upload(client, seed=4)
    cluster.lose_pod("ingress")
    cluster.start_pod("ingress")
    wait_until(lambda: cluster.replicas("Ingress") == cluster.addresses("ingress"), _START_TIMEOUT_S)
    cluster.wait_until_ready("ingress")
    for pod in cluster.pods["ingress"]:
        content = httpx2.get(f"http://{pod.address}:8000/images/{image_id}/content", headers=cluster.key())
        assert content.content == disc_jpeg(4)


@pytest.mark.parametrize("cluster", ["local"], indirect=True)
def test_pod_that_ends_lets_its_replicas_finish(cluster: Cluster) -> None:
    """The preStop hook moves the replicas to another pod while uploads go on; then Ray ends in its grace period."""
    leaving = cluster.pods["detector"][0]
    cluster.start_pod("detector")
    stop = cluster.service.container("detector")["lifecycle"]["preStop"]["exec"]["command"]
    with cluster.client() as client, ThreadPoolExecutor() as at_once:
        hook = at_once.submit(leaving.run, stop)
        statuses, seed = [], 10
        while not hook.done():
            answer = client.post("/images/", content=disc_jpeg(seed), headers={"Content-Type": "image/jpeg"})
            statuses.append(answer.status_code)
            seed += 1
    assert hook.result().returncode == 0, hook.result().stderr
    assert "no replica is left here" in hook.result().stderr
    assert set(statuses) == {201}
    assert leaving.address not in cluster.replicas("Detector")
    cluster.pods["detector"].remove(leaving)
    grace_s = cluster.service.group("detector")["template"]["spec"]["terminationGracePeriodSeconds"]
    assert leaving.terminate(grace_s)


@pytest.mark.parametrize("cluster", ["local"], indirect=True)
def test_nothing_of_ray_answers_without_the_token(cluster: Cluster) -> None:
    for path in ("/api/serve/applications/", "/api/jobs/", "/api/version"):
        assert cluster.dashboard("GET", path).status_code == 200
        assert httpx2.get(f"http://{cluster.head.address}:8265{path}").status_code == 401


@pytest.mark.parametrize("cluster", ["prod"], indirect=True)
def test_secrets_are_in_the_ingress_pods_alone(cluster: Cluster) -> None:
    """Also where Serve built the application: that needs the database's address, too."""
    url = cluster.service.secrets["circles-database"]["DATABASE_URL"]
    search = ["bash", "-c", f"cat /proc/[0-9]*/environ | grep -c -a -F '{url}'"]
    assert cluster.pods["ingress"][0].run(search).returncode == 0
    for pod in (cluster.head, *cluster.pods["detector"]):
        assert pod.run(search).stdout.strip() == "0"


@pytest.mark.parametrize("cluster", ["prod"], indirect=True)
def test_lost_head_is_not_missed(cluster: Cluster) -> None:
    """Uploads go on without a head; the next one takes over what is there."""
    ingress = cluster.replicas("Ingress")
    cluster.lose_pod("head")
    with cluster.client() as client:
        assert all(client.post("/images/", files={"file": disc_jpeg(seed)}).status_code == 201 for seed in (5, 6))
        cluster.start_pod("head")
        wait_until(lambda: cluster.application()["status"] == "RUNNING", _START_TIMEOUT_S)
        assert cluster.replicas("Ingress") == ingress, "they were started anew"
        assert client.post("/images/", files={"file": disc_jpeg(7)}).status_code == 201


@pytest.mark.parametrize("cluster", ["stage"], indirect=True)
def test_changed_key_is_that_of_the_next_ingress_pod(cluster: Cluster) -> None:
    """Nothing but the pod's own environment says which keys open it."""
    former = cluster.key()
    cluster.service = replace(cluster.service, secrets={"circles-api-keys": {"API_KEYS": "another-one"}})
    cluster.lose_pod("ingress")
    cluster.start_pod("ingress")
    wait_until(lambda: cluster.replicas("Ingress") == cluster.addresses("ingress"), _START_TIMEOUT_S)
    cluster.wait_until_ready("ingress")
    images = f"http://{cluster.pods['ingress'][0].address}:8000/images/"
    assert [httpx2.get(images, headers=key).status_code for key in ({}, former, cluster.key())] == [401, 401, 200]
