# shellcheck shell=bash disable=SC2034 # sourced by the scripts beside it, which read what is set here
# Where things are, how a step is shown and how its failure is told, and tools that always name their cluster.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=kuberay/cluster
# shellcheck source=/dev/null # variables alone
. "$here/versions.env"

cluster=circles
node=$cluster-control-plane
context=kind-$cluster
host=circles.localhost
http_node_port=30080
https_node_port=30443
python=.venv/bin/python
# Who signs the gateway's certificate, once check.sh has asked.
authority=build/cluster/ca.crt
# What is applied, in this order.
kustomizations="kuberay/overlays/local kuberay/kserve/local"
# Seconds for something to become ready, and between two looks at it.
wait_s=${CIRCLES_WAIT_S:-900}
pause_s=${CIRCLES_PAUSE_S:-5}

# Of many clusters in a kubeconfig, the one that is meant, whatever the current context is.
kubectl() {
    command kubectl --context "$context" "$@"
}

helm() {
    command helm --kube-context "$context" "$@"
}

running_step=
trap 'tell_failure $?' EXIT
trap 'tell_interruption; exit 130' INT TERM

step() { # step WHAT: begins one; its failure is told with its name
    running_step=$1
    echo "==> $1"
}

end_steps() { # end_steps LINE...: nothing of what follows is a step; the lines say what came of them, and what next
    running_step=
    printf '%s\n' "" "$@"
}

tell_failure() {
    [ "$1" = 0 ] || [ "$1" = 130 ] || [ -z "$running_step" ] ||
        echo "error: '$running_step' failed ($1). What is done stays done; the same words go on from here." >&2
}

tell_interruption() {
    [ -z "$running_step" ] || printf '\n%s\n' "interrupted in '$running_step'; the same words go on from here" >&2
    running_step=
}

fail() { # fail LINE...: with a reason that is not a step's
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# = 0 ] || printf '  %s\n' "$@" >&2
    running_step=
    exit 1
}

need() { # need TOOL...: or says which are missing and how to get them
    local tool is_missing=
    for tool in "$@"; do
        # Not `command -v`, which finds the functions above.
        if [ -z "$(type -P "$tool")" ]; then
            echo "error: $tool is not installed: $(where_to_get "$tool")" >&2
            is_missing=yes
        fi
    done
    [ -z "$is_missing" ] || exit 1
}

where_to_get() {
    case $1 in
        docker) echo "https://docs.docker.com/engine/install/" ;;
        kind) echo "https://kind.sigs.k8s.io/docs/user/quick-start/#installation" ;;
        kubectl) echo "https://kubernetes.io/docs/tasks/tools/#kubectl" ;;
        helm) echo "https://helm.sh/docs/intro/install/" ;;
    esac
}

cluster_exists() {
    kind get clusters 2>/dev/null | grep -Fx "$cluster" >/dev/null
}

need_docker() {
    docker info >/dev/null || fail "Docker does not answer: does its engine run, and may you use it?"
}

need_cluster() {
    need docker kind kubectl
    need_docker
    cluster_exists || fail "there is no Kind cluster '$cluster'" "just dev --k8s makes it"
}

need_context() { # the context, by the user's name for it
    need kubectl
    kubectl config get-contexts "$context" >/dev/null 2>&1 ||
        fail "there is no context '$context'" "kubectl config get-contexts lists them"
}

apply() { # apply ARGUMENT...: as if nobody else had a say in these objects
    kubectl apply --server-side --force-conflicts --field-manager circles "$@" >/dev/null
}

once() { # once NAME VERSION COMMAND...: unless it is written down in the cluster that this version is there
    local name=$1 version=$2 present
    shift 2
    present=$(kubectl get namespace kube-system --output "jsonpath={.metadata.annotations.circles\.example\.org/$name}")
    if [ "$present" = "$version" ]; then
        echo "    is there"
        return
    fi
    "$@"
    kubectl annotate namespace kube-system --overwrite "circles.example.org/$name=$version" >/dev/null
}

await() { # await LOOK COMMAND...: until the command succeeds, showing what LOOK says meanwhile; fails after wait_s
    local look=$1 since=$SECONDS
    shift
    until "$@" >/dev/null 2>&1; do
        [ $((SECONDS - since)) -lt "$wait_s" ] || return 1
        printf '    %s s\n' $((SECONDS - since))
        "$look" || true
        sleep "$pause_s"
    done
}

show_pods() {
    kubectl get pods --namespace circles --no-headers 2>/dev/null | sed 's/^/    /'
}

renew_cluster() { # if KubeRay does not: under `upgradeStrategy: None` it leaves a cluster as it is, whatever is applied
    local state strategy generation description present running of_service=ray.io/originated-from-cr-name=circles
    state=$(kubectl get rayservice circles --namespace circles \
        --output 'jsonpath={.spec.upgradeStrategy.type},{.metadata.generation}')
    IFS=, read -r strategy generation <<<"$state"
    [ "$strategy" = None ] || return 0
    description=$(kubectl get rayservice circles --namespace circles --output 'jsonpath={.spec.rayClusterConfig}' |
        cksum)
    present=$(kubectl get rayservice circles --namespace circles \
        --output 'jsonpath={.metadata.annotations.circles\.example\.org/cluster}')
    # What a cluster was made of that nobody wrote down (the first deployment was cut off, or made by other words) is known
    # only while the object is as it was made.
    [ -n "$present" ] || [ "$generation" != 1 ] || present=$description
    running=$(kubectl get rayclusters --namespace circles --selector "$of_service" --output name)
    if [ -n "$running" ] && [ "$present" != "$description" ]; then
        step "the Ray cluster starts anew; until then nothing answers"
        kubectl delete rayclusters --namespace circles --selector "$of_service" >/dev/null
        # Its operator has noticed, so that what it says from here on is about the new one.
        # By its path: kubectl passes over a condition that is older than the object's last change.
        kubectl wait rayservice circles --namespace circles --timeout 2m \
            --for 'jsonpath={.status.conditions[?(@.type=="Ready")].status}=False' >/dev/null
    fi
    kubectl annotate rayservice circles --namespace circles --overwrite \
        "circles.example.org/cluster=$description" >/dev/null
}

application_is_ready() { # its operator has seen what was applied, all of that serves, and nothing older does
    local state generation seen is_ready is_upgrading
    state=$(kubectl get rayservice circles --namespace circles --output "jsonpath={.metadata.generation},\
{.status.observedGeneration},{.status.conditions[?(@.type=='Ready')].status},\
{.status.conditions[?(@.type=='UpgradeInProgress')].status}")
    IFS=, read -r generation seen is_ready is_upgrading <<<"$state"
    [ "$generation" = "$seen" ] && [ "$is_ready" = True ] && [ "$is_upgrading" != True ]
}

roll_out() { # what was applied, brought to life
    renew_cluster
    step "the application is ready (RayService circles; at most $wait_s s)"
    await show_pods application_is_ready || tell_state circles rayservice/circles
}

tell_state() { # tell_state NAMESPACE OBJECT: why it is not ready, as far as Kubernetes knows, and fails
    {
        kubectl get "pods,${2%%/*}s" --namespace "$1" --output wide || true
        echo "The last events:"
        kubectl get events --namespace "$1" --sort-by .lastTimestamp | tail -n 15 || true
    } >&2
    fail "$2 is not ready after $wait_s s. Look further with" \
        "kubectl --context $context --namespace $1 describe $2" \
        "kubectl --context $context --namespace $1 describe pods" \
        "kubectl --context $context --namespace $1 logs --all-containers <pod>"
}

published_port() { # published_port PORT: of this machine, for one of the node's
    local address
    address=$(docker port "$node" "$1/tcp")
    address=${address%%$'\n'*}
    echo "${address##*:}"
}

gateway_url() {
    local port
    port=$(published_port "$https_node_port")
    echo "https://$host:$port"
}
