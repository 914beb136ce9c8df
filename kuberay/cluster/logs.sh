#!/usr/bin/env bash
# Shows what the application on the Kind cluster says; goes on as it says more with -f.
# Serve writes it into files of each pod; Kubernetes knows only what Ray's own processes say.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    local pods pod log='/tmp/ray/session_latest/logs/serve/*.log'
    case "${1:-}" in
        "" | -f | --follow) ;;
        *) fail "unknown argument: $1" "logs.sh [-f]" ;;
    esac
    need_cluster
    pods=$(kubectl get pods --namespace circles --selector app.kubernetes.io/name=circles \
        --field-selector status.phase=Running --output name)
    [ -n "$pods" ] || fail "no pod of the application runs" "just status --k8s says more; just dev --k8s starts it"

    if [ -z "${1:-}" ]; then
        for pod in $pods; do
            # A pod in which no replica runs has no such files.
            kubectl exec --namespace circles "$pod" -- sh -c "tail -n 100 $log 2>/dev/null || true" |
                name_lines "${pod#pod/}"
        done
        return
    fi
    trap 'end_following; exit 0' INT TERM
    for pod in $pods; do
        # By exec, so that the job is kubectl itself: started in the background, it does not hear Ctrl-C.
        (exec kubectl --context "$context" exec --namespace circles "$pod" -- \
            sh -c "exec tail -n 100 -F $log 2>/dev/null" > >(name_lines "${pod#pod/}")) &
    done
    wait
}

name_lines() { # name_lines NAME: before each line of the input
    awk -v name="$1" '{ print name ": " $0; fflush() }'
}

end_following() {
    # shellcheck disable=SC2046 # process ids
    kill $(jobs -p) 2>/dev/null || true
    printf '\n%s\n' "the cluster goes on" \
        "just clean --k8s           takes the application off it" \
        "just clean --k8s --force   deletes it, and what was uploaded"
}

main "$@"
