"""``just deploy``, with a stand-in for kubectl."""

from pathlib import Path

import pytest

from tests.kuberay.checkout import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Of a user who has two contexts, and works on the first; the application runs in both."""
    checkout = Checkout(tmp_path)
    checkout.set(contexts="elsewhere\nproduction", namespace="namespace/circles")
    return checkout


def changes(checkout: Checkout) -> list[str]:
    """The calls that change a cluster."""
    reads = ("get", "diff", "config")
    return [call for call in kubectl_calls(checkout) if call.split()[3] not in reads and "--dry-run" not in call]


def kubectl_calls(checkout: Checkout) -> list[str]:
    return [call for call in checkout.calls() if call.startswith("kubectl ")]


def test_without_a_named_context_nothing_is_touched(checkout: Checkout) -> None:
    done = checkout.run("deploy.sh", "prod", "--yes")
    assert done.returncode == 1
    assert "just deploy dev|stage|prod --context NAME" in done.stderr
    assert "here are: elsewhere production" in done.stderr
    assert checkout.calls() == ["kubectl config get-contexts --output name"]


def test_unknown_context_is_refused(checkout: Checkout) -> None:
    done = checkout.run("deploy.sh", "prod", "--context", "prodution", "--yes")
    assert done.returncode == 1
    assert "there is no context 'prodution'" in done.stderr
    assert changes(checkout) == []


@pytest.mark.parametrize("arguments", [[], ["--context", "production"], ["prod", "--context"], ["production"]])
def test_incomplete_words_are_refused_with_how_to_say_it(checkout: Checkout, arguments: list[str]) -> None:
    done = checkout.run("deploy.sh", *arguments)
    assert done.returncode == 1
    assert "just deploy dev|stage|prod --context NAME" in done.stderr
    assert checkout.calls() == []


@pytest.mark.parametrize("environment", ["dev", "stage", "prod"])
def test_differences_are_shown_before_they_are_applied(checkout: Checkout, environment: str) -> None:
    said = checkout.succeed("deploy.sh", environment, "--context", "production", "--yes")
    assert said.index("+ a difference") < said.index("==> apply")
    overlay = f"--field-manager circles --kustomize kuberay/overlays/{environment}"
    commands = [call.removeprefix("kubectl --context production ") for call in checkout.calls()]
    diff, apply = f"diff --server-side {overlay}", f"apply --server-side {overlay}"
    assert commands.index(diff) < commands.index(apply)
    assert any(command.startswith("get rayservice circles") for command in commands[commands.index(apply) :])


def test_every_call_names_the_context(checkout: Checkout) -> None:
    checkout.succeed("deploy.sh", "--yes", "prod", "--context=production")
    checkout.succeed("deploy.sh", "prod", "--yes", CIRCLES_CONTEXT="production")
    assert {call.partition(" production ")[0] for call in kubectl_calls(checkout)} == {"kubectl --context"}


@pytest.mark.parametrize(("answer", "is_applied"), [("y\n", True), ("yes\n", True), ("n\n", False), ("", False)])
def test_nothing_is_applied_that_nobody_agreed_to(checkout: Checkout, answer: str, is_applied: bool) -> None:
    """No answer, as of a machine that nobody sits at, is no agreement either."""
    done = checkout.run("deploy.sh", "prod", "--context", "production", answer=answer)
    assert "Deploy prod to production? [y/N]" in done.stdout
    assert (done.returncode == 0) is is_applied
    assert any(" apply " in call for call in changes(checkout)) is is_applied


def test_without_differences_nothing_is_asked_or_applied(checkout: Checkout) -> None:
    checkout.set(diff="0")
    said = checkout.succeed("deploy.sh", "prod", "--context", "production")
    assert "Deploy prod" not in said
    assert not any(" apply " in call for call in checkout.calls())


def test_first_deployment_lists_what_will_be_there(checkout: Checkout) -> None:
    """`kubectl diff` fails when the namespace is not there yet."""
    checkout.set(namespace="")
    checkout.succeed("deploy.sh", "stage", "--context", "production", "--yes")
    applied = [call for call in checkout.calls() if " apply " in call]
    assert ["--dry-run=client" in call for call in applied] == [True, False]
    assert not any(" diff " in call for call in checkout.calls())


@pytest.mark.parametrize(
    ("failing", "step"),
    [
        ("get namespace circles", "the environment of production"),
        ("get namespace circles --ignore-not-found --output name", "what changes in production"),
        ("apply --server-side", "apply kuberay/overlays/dev to production"),
        ("get rayservice circles", "apply kuberay/overlays/dev to production"),
        ("get rayclusters", "apply kuberay/overlays/dev to production"),
        ("annotate rayservice", "apply kuberay/overlays/dev to production"),
    ],
)
def test_failed_step_is_named_and_nothing_follows_it(checkout: Checkout, failing: str, step: str) -> None:
    checkout.set(failing=failing)
    done = checkout.run("deploy.sh", "dev", "--context", "production", "--yes")
    assert done.returncode == 1
    assert f"error: '{step}' failed" in done.stderr
    assert failing in checkout.calls()[-1]


def test_manifests_that_do_not_fit_are_not_deployed(checkout: Checkout) -> None:
    checkout.set(failing="serve_app.manifests")
    done = checkout.run("deploy.sh", "prod", "--context", "production", "--yes")
    assert done.returncode == 1
    assert "error: 'the parts of kuberay/overlays/prod fit each other' failed" in done.stderr
    assert changes(checkout) == []


def test_failed_comparison_ends_it(checkout: Checkout) -> None:
    """Also when it is about fields that somebody else manages."""
    checkout.set(diff="2")
    done = checkout.run("deploy.sh", "dev", "--context", "production", "--yes")
    assert done.returncode == 2
    assert changes(checkout) == []


def test_application_that_is_not_ready_is_shown(checkout: Checkout) -> None:
    checkout.set(readiness="2,2,False,True")
    done = checkout.run("deploy.sh", "prod", "--context", "production", "--yes", CIRCLES_WAIT_S="0")
    assert done.returncode == 1
    assert "kubectl --context production --namespace circles describe rayservice/circles" in done.stderr


def test_changed_pods_replace_a_cluster_that_kuberay_leaves_alone(checkout: Checkout) -> None:
    checkout.succeed("deploy.sh", "stage", "--context", "production", "--yes")
    checkout.set(description='{"image": "newer"}')
    said = checkout.succeed("deploy.sh", "stage", "--context", "production", "--yes")
    assert "the Ray cluster starts anew" in said
    assert sum("delete rayclusters" in call for call in checkout.calls()) == 1


@pytest.mark.parametrize(
    ("generation", "rayclusters", "is_renewed"),
    [
        pytest.param(2, "raycluster.ray.io/circles-x7k2p", True, id="made by other words, then changed"),
        pytest.param(1, "raycluster.ray.io/circles-x7k2p", False, id="never changed"),
        pytest.param(2, "", False, id="no cluster yet"),
    ],
)
def test_a_cluster_that_nobody_wrote_down_is_not_taken_for_the_new_one(
    checkout: Checkout, generation: int, rayclusters: str, is_renewed: bool
) -> None:
    """What it was made of is not known after a plain `kubectl apply`, or a first deployment that was cut off."""
    checkout.set(readiness=f"{generation},{generation},True,False", rayclusters=rayclusters)
    said = checkout.succeed("deploy.sh", "stage", "--context", "production", "--yes")
    assert ("the Ray cluster starts anew" in said) is is_renewed
    assert any("delete rayclusters" in call for call in checkout.calls()) is is_renewed
    checkout.forget()
    checkout.succeed("deploy.sh", "stage", "--context", "production", "--yes")
    assert not any("delete rayclusters" in call for call in checkout.calls())


def test_first_deployment_that_was_cut_off_is_caught_up_with(checkout: Checkout) -> None:
    """What it had applied runs until the next one, which has something else."""
    checkout.set(namespace="", failing="get rayservice circles")
    assert checkout.run("deploy.sh", "stage", "--context", "production", "--yes").returncode == 1
    checkout.set(failing="", description='{"image": "newer"}', readiness="2,2,True,False")
    assert "the Ray cluster starts anew" in checkout.succeed("deploy.sh", "stage", "--context", "production", "--yes")


def test_another_environments_cluster_is_refused(checkout: Checkout) -> None:
    checkout.succeed("deploy.sh", "prod", "--context", "production", "--yes")
    checkout.forget()
    done = checkout.run("deploy.sh", "stage", "--context", "production", "--yes")
    assert done.returncode == 1
    assert "error: production has environment 'prod'" in done.stderr
    assert "label namespace circles --overwrite environment=stage" in done.stderr
    assert changes(checkout) == []
    checkout.succeed("deploy.sh", "prod", "--context", "production", "--yes")


def test_missing_kubectl_is_named(checkout: Checkout) -> None:
    checkout.remove_tool("kubectl")
    assert "kubectl is not installed: https://" in checkout.run("deploy.sh", "dev", "--context", "production").stderr
