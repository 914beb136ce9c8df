#!/usr/bin/env bash
# Deploys an environment to the cluster that the user names: shows what would change, asks, applies, waits.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage="just deploy dev|stage|prod --context NAME [--yes]   (or CIRCLES_CONTEXT=NAME)"
context=${CIRCLES_CONTEXT:-}
environment=
is_agreed=

main() {
    read_arguments "$@"
    need kubectl
    if [ -z "$context" ]; then
        fail "which cluster? Only one that is named is touched, never just the current one" "$usage" \
            "here are: $(command kubectl config get-contexts --output name | tr '\n' ' ')"
    fi
    need_context
    local overlay=kuberay/overlays/$environment

    step "the environment of $context"
    refuse_another_environment
    step "the parts of $overlay fit each other"
    "$python" -m serve_app.manifests "$overlay"

    step "what changes in $context"
    if has_changes "$overlay"; then
        running_step=
        agree || fail "nothing was deployed"
        step "apply $overlay to $context"
        # Not by force: what somebody else changed in the cluster is theirs to give up.
        kubectl apply --server-side --field-manager circles --kustomize "$overlay"
    else
        echo "    nothing"
    fi
    roll_out
    end_steps "$environment runs in $context" \
        "kubectl --context $context --namespace circles get rayservices,pods   shows it" \
        "an older commit, and the same words, bring the older version back"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            dev | stage | prod) environment=$1 ;;
            --context=*) context=${1#*=} ;;
            --context)
                [ $# -gt 1 ] || fail "--context wants a name" "$usage"
                context=$2
                shift
                ;;
            --yes) is_agreed=yes ;;
            *) fail "unknown argument: $1" "$usage" ;;
        esac
        shift
    done
    [ -n "$environment" ] || fail "which environment?" "$usage"
}

refuse_another_environment() { # all of them are the same objects: one would take the other's place, and its data
    local present
    present=$(kubectl get namespace circles --ignore-not-found --output 'jsonpath={.metadata.labels.environment}')
    [ -z "$present" ] || [ "$present" = "$environment" ] ||
        fail "$context has environment '$present', and a cluster has one: '$environment' would take its place" \
            "if that is meant, and its data is safe: kubectl --context $context label namespace circles --overwrite environment=$environment"
}

has_changes() { # has_changes OVERLAY: shows them
    local status=0 namespace
    namespace=$(kubectl get namespace circles --ignore-not-found --output name) || exit
    if [ -z "$namespace" ]; then
        # Nothing can be compared inside a namespace that is not there.
        kubectl apply --dry-run=client --output name --kustomize "$1" || exit
        return 0
    fi
    kubectl diff --server-side --field-manager circles --kustomize "$1" || status=$?
    case $status in
        0) return 1 ;;
        1) return 0 ;;
        *) exit "$status" ;;
    esac
}

agree() {
    local answer
    [ -z "$is_agreed" ] || return 0
    printf 'Deploy %s to %s? [y/N] ' "$environment" "$context"
    read -r answer || answer=
    [ "$answer" = y ] || [ "$answer" = yes ]
}

main "$@"
