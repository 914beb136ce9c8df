#!/usr/bin/env bash
# Takes the application off the Kind cluster; with --force deletes the cluster. No other cluster is touched.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    local kustomization
    case "${1:-}" in
        "" | --force) ;;
        *) fail "unknown argument: $1" "down.sh [--force]" ;;
    esac
    need docker kind kubectl
    need_docker
    if ! cluster_exists; then
        echo "there is no Kind cluster '$cluster'"
    elif [ "${1:-}" = --force ]; then
        step "delete Kind cluster $cluster"
        kind delete cluster --name "$cluster"
        end_steps "the cluster is gone, and what was uploaded with it; just dev --k8s makes a new one"
    else
        for kustomization in $(reversed "$kustomizations"); do
            step "remove $kustomization"
            kubectl delete --kustomize "$kustomization" --ignore-not-found --wait
        done
        end_steps "the cluster goes on, and what was uploaded stays in its node" \
            "just dev --k8s             brings the application back" \
            "just clean --k8s --force   deletes the cluster, and what was uploaded"
    fi
}

reversed() { # reversed WORDS
    local word words=
    for word in $1; do
        words="$word $words"
    done
    echo "$words"
}

main "$@"
