"""The words on a Kind cluster, with stand-ins for the tools that would need one."""

import re
import shutil
from pathlib import Path

import psutil
import pytest
import yaml

from tests.kuberay.checkout import TOOLS, Checkout
from tests.running import wait_until

# What a first start does, in order: a part of the command line; whether a second start leaves it alone; and, of what is
# repeated as a whole, the name of that whole.
STEPS: list[tuple[str, bool, str]] = [
    ("kind create cluster", True, ""),
    ("wait node", False, ""),
    ("docker exec circles-control-plane install -d -o 1000 -g 1000 -m 0750 /data/circles", False, ""),
    ("gateway-api/releases/download/v1.6.1/standard-install.yaml", True, ""),
    ("helm --kube-context kind-circles upgrade --install cert-manager ", True, ""),
    ("upgrade --install istio-base base ", True, ""),
    ("upgrade --install istiod istiod ", True, ""),
    ("upgrade --install istio-cni cni ", True, ""),
    ("upgrade --install ztunnel ztunnel ", True, ""),
    ("upgrade --install istio-ingressgateway gateway ", True, ""),
    ("--filename kuberay/cluster/namespaces.yaml", False, ""),
    ("serving-crds.yaml", True, "knative"),
    ("wait crd", True, "knative"),
    ("serving-core.yaml", True, "knative"),
    ("net-istio.yaml", True, "knative"),
    ("wait deployment --all --namespace knative-serving", True, "knative"),
    ("--filename kuberay/cluster/knative.yaml", True, "knative"),
    ("upgrade --install kserve-crd ", True, ""),
    ("upgrade --install kserve-resources ", True, ""),
    ("upgrade --install kuberay-operator kuberay-operator ", True, ""),
    ("docker build --target serve ", False, ""),
    ("kind load docker-image circles:local", True, "image circles"),
    ("delete pods --all --namespace circles", True, "image circles"),
    ("docker build --target kserve ", False, ""),
    ("kind load docker-image circles-kserve:local", True, "image circles-kserve"),
    ("delete pods --all --namespace circles-serving", True, "image circles-kserve"),
    ("--kustomize kuberay/overlays/local", False, ""),
    ("--kustomize kuberay/kserve/local", False, ""),
    ("get rayservice circles --namespace circles --output jsonpath={.metadata.generation}", False, ""),
    ("wait inferenceservice circle-detector", False, ""),
]
READS = re.compile(
    r"^(docker (info|inspect|image inspect|port)|kind get|python"
    r"|(kubectl|helm) \S+ \S+ (get|config (current|get)|history|annotate|config use-context))"
)


def is_step(call: str, step: str) -> bool:
    return call.endswith(step) if step.startswith("delete pods") else step in call


def steps(checkout: Checkout) -> list[str]:
    """Those of the calls that are steps of a first start."""
    return [step for call in checkout.calls() for step, _, _ in STEPS if is_step(call, step)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The first start is over; for reading alone."""
    checkout = Checkout(tmp_path_factory.mktemp("installed"))
    checkout.succeed("up.sh")
    return checkout


@pytest.fixture
def running(installed: Checkout, tmp_path: Path) -> Checkout:
    """The first start is over, and its calls are forgotten."""
    checkout = Checkout(tmp_path)
    shutil.copytree(installed.world, checkout.world, dirs_exist_ok=True)
    checkout.forget()
    return checkout


def test_first_start_does_everything_in_order(installed: Checkout) -> None:
    assert steps(installed) == [step for step, _, _ in STEPS]


def test_nothing_that_changes_something_is_missing_from_the_steps(installed: Checkout) -> None:
    changes = [call for call in installed.calls() if not READS.match(call)]
    assert [call for call in changes if not any(is_step(call, step) for step, _, _ in STEPS)] == []


def test_second_start_repeats_nothing_that_is_done(running: Checkout) -> None:
    running.succeed("up.sh")
    assert steps(running) == [step for step, is_kept, _ in STEPS if not is_kept]


@pytest.mark.parametrize("failing", [step for step, _, _ in STEPS])
def test_failed_step_is_named_and_the_next_start_goes_on_from_there(checkout: Checkout, failing: str) -> None:
    checkout.set(failing=failing)
    done = checkout.run("up.sh", CIRCLES_WAIT_S="0")
    assert done.returncode != 0
    assert "error: " in done.stderr
    last_step = [line for line in done.stdout.splitlines() if line.startswith("==> ")][-1].removeprefix("==> ")
    assert last_step in done.stderr or "just dev --k8s" in done.stderr or "Look further with" in done.stderr
    number = [step for step, _, _ in STEPS].index(failing)
    assert steps(checkout)[-1] == failing
    assert steps(checkout) == [step for step, _, _ in STEPS[: number + 1]]

    checkout.set(failing="")
    checkout.forget()
    checkout.succeed("up.sh")
    whole = STEPS[number][2]
    assert steps(checkout) == [
        step
        for index, (step, is_kept, its_whole) in enumerate(STEPS)
        if index >= number or not is_kept or (whole and its_whole == whole)
    ]


@pytest.mark.parametrize("tool", TOOLS)
def test_missing_tool_is_named_with_the_page_that_tells_how_to_get_it(checkout: Checkout, tool: str) -> None:
    checkout.remove_tool(tool)
    done = checkout.run("up.sh")
    assert done.returncode == 1
    assert re.search(rf"^error: {tool} is not installed: https://\S+$", done.stderr, re.MULTILINE)
    assert checkout.calls() == []


def test_all_missing_tools_are_named_at_once(checkout: Checkout) -> None:
    for tool in TOOLS:
        checkout.remove_tool(tool)
    assert checkout.run("up.sh").stderr.count("is not installed") == len(TOOLS)


def test_engine_that_does_not_answer_is_told(checkout: Checkout) -> None:
    checkout.set(failing="docker info")
    for script in ("up.sh", "check.sh", "down.sh", "status.sh"):
        done = checkout.run(script)
        assert done.returncode == 1
        assert "Docker does not answer" in done.stderr


@pytest.mark.parametrize("engine", ["3 16000000000", "8 6000000000"], ids=["cores", "memory"])
def test_engine_that_is_too_small_is_told_before_anything_is_done(checkout: Checkout, engine: str) -> None:
    checkout.set(engine=engine)
    done = checkout.run("up.sh")
    assert done.returncode == 1
    cores, memory_bytes = engine.split()
    has = f"Docker has {cores} cores and {int(memory_bytes) // 2**20} MiB"
    assert f"error: {has}; this wants 4 cores and 8 GiB" in done.stderr
    assert {call.partition(" --")[0] for call in checkout.calls()} == {"docker info"}


def test_unknown_name_is_told_before_anything_is_done(checkout: Checkout) -> None:
    checkout.set(failing="python -c import socket")
    done = checkout.run("up.sh")
    assert done.returncode == 1
    assert "/etc/hosts" in done.stderr
    assert [call for call in checkout.calls() if not call.startswith(("python", "docker info"))] == []


def test_every_call_names_the_kind_cluster(checkout: Checkout) -> None:
    """Whatever the current context is, and for every word."""
    for script, *arguments in (
        ["up.sh"], ["up.sh", "--clean"], ["check.sh", "--evaluate"], ["logs.sh"], ["status.sh"], ["endpoints.sh"],
        ["down.sh"], ["down.sh", "--force"],
    ):  # fmt: skip
        checkout.succeed(script, *arguments)
    for call in checkout.calls():
        tool = call.split()[0]
        if tool in ("kubectl", "helm"):
            flag = "--context" if tool == "kubectl" else "--kube-context"
            assert call.startswith(f"{tool} {flag} kind-circles ")
        if re.match(r"kind (create|delete|load|export)", call):
            assert " --name circles" in call


def test_the_current_context_stays_what_it_is(checkout: Checkout) -> None:
    checkout.succeed("up.sh")
    assert checkout.get("current_context") == "elsewhere"


def test_clean_start_makes_the_cluster_anew(running: Checkout) -> None:
    running.succeed("up.sh", "--clean")
    calls = running.calls()
    assert calls.index("kind delete cluster --name circles") < next(
        index for index, call in enumerate(calls) if call.startswith("kind create cluster")
    )
    assert steps(running) == [step for step, _, _ in STEPS]


def test_clean_start_without_a_cluster_deletes_none(checkout: Checkout) -> None:
    checkout.succeed("install.sh", "--clean")
    assert not any("delete" in call for call in checkout.calls())


def test_cluster_that_sleeps_is_woken(running: Checkout) -> None:
    running.set(node_running="false")
    running.succeed("install.sh")
    assert "docker start circles-control-plane" in running.calls()


def test_lost_context_is_found_again(running: Checkout) -> None:
    running.set(contexts="elsewhere")
    running.succeed("install.sh")
    assert "kind export kubeconfig --name circles" in running.calls()
    assert running.get("current_context") == "elsewhere"


@pytest.mark.parametrize(
    ("status", "repair"), [("pending-install", "uninstall"), ("pending-upgrade", "rollback"), ("failed", None)]
)
def test_release_that_was_cut_off_is_repaired(running: Checkout, status: str, repair: str | None) -> None:
    running.set(**{"releases/istiod": running.get("releases/istiod").replace("deployed", status)})
    running.succeed("install.sh")
    changes = [call for call in running.calls() if call.startswith("helm ") and " history " not in call]
    assert [call.split()[3] for call in changes] == [*([repair] if repair else []), "upgrade"]


def test_changed_values_reach_their_release_alone(running: Checkout) -> None:
    with (running.folder / "kuberay" / "cluster" / "values" / "istiod.yaml").open("a") as values:
        values.write("# changed\n")
    running.succeed("install.sh")
    assert [call.split()[5] for call in running.calls() if " upgrade " in call] == ["istiod"]


def test_changed_settings_of_knative_are_applied(running: Checkout) -> None:
    with (running.folder / "kuberay" / "cluster" / "knative.yaml").open("a") as settings:
        settings.write("# changed\n")
    running.succeed("install.sh")
    assert any(call.endswith("--filename kuberay/cluster/knative.yaml") for call in running.calls())


def test_new_image_is_loaded_and_its_pods_start_again(running: Checkout) -> None:
    running.set(**{"image-circles:local": "sha256:3"})
    running.succeed("up.sh")
    changes = [step for step in steps(running) if step.startswith(("kind load", "delete pods"))]
    assert changes == ["kind load docker-image circles:local", "delete pods --all --namespace circles"]


@pytest.mark.parametrize(("strategy", "is_renewed"), [("None", True), ("NewCluster", False)])
def test_changed_description_reaches_a_cluster_that_kuberay_leaves_alone(
    running: Checkout, strategy: str, is_renewed: bool
) -> None:
    running.set(strategy=strategy, description='{"changed": true}')
    running.succeed("up.sh")
    assert any("delete rayclusters --namespace circles" in call for call in running.calls()) is is_renewed
    running.forget()
    running.succeed("up.sh")
    assert not any("delete rayclusters" in call for call in running.calls())


@pytest.mark.parametrize(
    "readiness",
    ["", "1,,,", "2,1,True,False", "1,1,False,False", "1,1,True,True", "1,1,,True"],
    ids=["no object", "no status", "not seen", "not ready", "older version serves too", "only the older version"],
)
def test_application_that_is_not_ready_is_shown_with_what_to_look_at(running: Checkout, readiness: str) -> None:
    running.set(readiness=readiness)
    done = running.run("up.sh", CIRCLES_WAIT_S="0")
    assert done.returncode == 1
    for hint in ("get pods,rayservices", "get events", "describe rayservice/circles"):
        assert hint in done.stderr
    assert not any("inferenceservice circle-detector" in call for call in running.calls())


def test_ports_are_the_users_to_choose(checkout: Checkout) -> None:
    checkout.succeed("install.sh", HTTP_PORT="8080", HTTPS_PORT="8443")
    mappings = yaml.safe_load(checkout.get("kind.yaml"))["nodes"][0]["extraPortMappings"]
    assert {mapping["containerPort"]: mapping["hostPort"] for mapping in mappings} == {30080: 8080, 30443: 8443}
    # Known from the cluster later, when nobody says them again.
    checkout.set(**{"port-30080": "8080", "port-30443": "8443"})
    assert "https://circles.localhost:8443/docs" in checkout.succeed("endpoints.sh")


def test_taken_port_is_told_with_how_to_name_another(checkout: Checkout) -> None:
    checkout.set(failing="kind create")
    assert "HTTP_PORT=8080 HTTPS_PORT=8443 just dev --k8s" in checkout.run("install.sh").stderr


def test_tests_go_through_the_gateway_and_trust_its_authority(running: Checkout) -> None:
    running.succeed("check.sh")
    asked = [call for call in running.records() if call.line.startswith("python ")]
    health, tests = (call.line for call in asked)
    assert health == "python -m serve_app health --url https://circles.localhost:443"
    assert " -m serve and not control --service-url https://circles.localhost:443 " in tests
    assert tests.endswith(" --service-grpc circles.localhost:443")
    authority = running.folder / "build" / "cluster" / "ca.crt"
    assert {call.trusted for call in asked} == {str(authority)}
    assert authority.read_text().startswith("-----BEGIN CERTIFICATE-----")


def test_gateway_that_does_not_answer_is_told(running: Checkout) -> None:
    for part in ("get secret circles-tls", "python -m serve_app health"):
        running.set(failing=part)
        done = running.run("check.sh", CIRCLES_WAIT_S="0")
        assert done.returncode == 1
        assert "logs deployment/istio-ingressgateway" in done.stderr


@pytest.mark.parametrize("failing", ["python -m pytest", "python -m evaluation"])
def test_failed_check_is_told_after_all_of_them(running: Checkout, failing: str) -> None:
    running.set(failing=failing)
    done = running.run("check.sh", "--evaluate")
    assert done.returncode == 1
    is_tests = failing == "python -m pytest"
    assert f"integration tests: {'failed' if is_tests else 'passed'}\n" in done.stdout
    assert f"evaluation: {'passed' if is_tests else 'failed'}" in done.stdout
    (evaluation,) = (call for call in running.calls() if call.startswith("python -m evaluation"))
    assert "--url https://circles.localhost:443 " in evaluation


def test_dev_stays_until_ctrl_c_and_leaves_the_cluster_alone(running: Checkout) -> None:
    running.set(failing="python -m pytest")  # failed tests are no reason to go
    done = running.interrupt("dev.sh", when=lambda: sum(" -F " in call for call in running.calls()) == 2)
    assert done.returncode == 0, done.stderr
    assert "integration tests: failed" in done.stdout
    assert "https://circles.localhost:443/docs" in done.stdout
    assert "just clean --k8s --force" in done.stdout
    assert running.get("clusters") == "circles"


@pytest.mark.parametrize("is_ended_alone", [False, True], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("context", ["kind-circles", "elsewhere"])
def test_followed_logs_leave_nothing_behind(running: Checkout, is_ended_alone: bool, context: str) -> None:
    def following() -> list[int]:
        return [call.pid for call in running.records() if f"--context {context} " in call.line and " -F " in call.line]

    words = ("--follow", "--context", context)
    done = running.interrupt("logs.sh", *words, when=lambda: len(following()) == 2, is_ended_alone=is_ended_alone)
    assert done.returncode == 0, done.stderr
    assert ("just clean --k8s" in done.stdout) is (context == "kind-circles")
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in following()))


def test_dev_ends_when_the_cluster_cannot_be_made(checkout: Checkout) -> None:
    checkout.set(failing="kind create")
    assert checkout.run("dev.sh").returncode == 1
    assert not any(call.startswith("python -m") for call in checkout.calls())


@pytest.mark.parametrize("lasting", ["upgrade --install istiod", "kind load docker-image circles:local"])
def test_interruption_ends_the_start_and_the_next_one_goes_on(checkout: Checkout, lasting: str) -> None:
    checkout.set(lasting=lasting)
    done = checkout.interrupt("dev.sh", when=lambda: checkout.get("lasts") != "")
    assert done.returncode == 130
    assert done.stderr.count("interrupted in '") == 1
    assert "error" not in done.stderr
    assert lasting in checkout.calls()[-1]
    checkout.set(lasting="")
    checkout.succeed("up.sh")
    assert sum("kind create cluster" in call for call in checkout.calls()) == 1


def test_interrupted_check_does_not_go_on_to_the_logs(running: Checkout) -> None:
    running.set(lasting="python -m pytest")
    done = running.interrupt("dev.sh", when=lambda: running.get("lasts") != "")
    assert done.returncode == 130
    assert "python -m pytest" in running.calls()[-1]


def test_logs_are_shown_with_their_pods_names(running: Checkout) -> None:
    said = running.succeed("logs.sh")
    assert re.findall(r"^(\S+): said", said, re.MULTILINE) == ["circles-head", "circles-ingress"]
    running.set(pods="")
    assert "no pod of the application runs" in running.run("logs.sh", "-f").stderr


def test_logs_are_those_of_the_context_that_is_named(running: Checkout) -> None:
    running.set(contexts="elsewhere\nproduction")
    said = running.succeed("logs.sh", "--context", "production")
    assert re.findall(r"^(\S+): said", said, re.MULTILINE) == ["circles-head", "circles-ingress"]
    assert {call.partition(" production ")[0] for call in running.calls()} == {"kubectl --context"}
    running.set(pods="")
    assert "kubectl --context production --namespace" in running.run("logs.sh", "--context=production").stderr
    assert "there is no context 'nowhere'" in running.run("logs.sh", "-f", "--context", "nowhere").stderr
    assert "logs.sh [-f] [--context NAME]" in running.run("logs.sh", "--context").stderr


def test_clean_takes_the_application_off_and_leaves_the_cluster(running: Checkout) -> None:
    said = running.succeed("down.sh")
    removed = [call.split()[5] for call in running.calls() if " delete " in call]
    assert removed == ["kuberay/kserve/local", "kuberay/overlays/local"]
    assert running.get("clusters") == "circles"
    assert "just clean --k8s --force" in said


def test_clean_by_force_deletes_the_cluster_and_no_other(running: Checkout) -> None:
    running.set(clusters="circles\ncircles-of-friends", others="circles-of-friends")
    running.succeed("down.sh", "--force")
    assert running.get("clusters") == "circles-of-friends"
    running.forget()
    assert "no Kind cluster" in running.succeed("down.sh", "--force")
    assert not any("delete" in call for call in running.calls())


@pytest.mark.parametrize("script", ["check.sh", "logs.sh", "status.sh", "endpoints.sh"])
def test_words_without_a_cluster_say_how_to_make_one(checkout: Checkout, script: str) -> None:
    done = checkout.run(script)
    assert done.returncode == 1
    assert "just dev --k8s makes it" in done.stderr


@pytest.mark.parametrize("script", ["install.sh", "up.sh", "dev.sh", "check.sh", "logs.sh", "down.sh", "deploy.sh"])
def test_unknown_argument_is_refused(checkout: Checkout, script: str) -> None:
    done = checkout.run(script, "--kserve")
    assert done.returncode == 1
    assert "unknown argument: --kserve" in done.stderr
    assert [call for call in checkout.calls() if not READS.match(call)] == []
