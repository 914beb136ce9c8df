#!/usr/bin/env bash
# Shows what the application on the Kind cluster says, or on the one of the context that is named; goes on as it says more
# with -f.
# Serve writes it into files of each pod; Kubernetes knows only what Ray's own processes say.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

kind_context=$context
follows=

main() {
    local pods pod log='/tmp/ray/session_latest/logs/serve/*.log'
    read_arguments "$@"
    if is_kind; then
        need_cluster
    else
        need_context
    fi
    pods=$(kubectl get pods --namespace circles --selector app.kubernetes.io/name=circles \
        --field-selector status.phase=Running --output name)
    if [ -z "$pods" ]; then
        ! is_kind || fail "no pod of the application runs" "just status --k8s says more; just dev --k8s starts it"
        fail "no pod of the application runs" \
            "kubectl --context $context --namespace circles get rayservices,pods   says more"
    fi

    if [ -z "$follows" ]; then
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

read_arguments() {
    local usage="logs.sh [-f] [--context NAME]"
    while [ $# -gt 0 ]; do
        case $1 in
            -f | --follow) follows=yes ;;
            --context=*) context=${1#*=} ;;
            --context)
                [ $# -gt 1 ] || fail "--context wants a name" "$usage"
                context=$2
                shift
                ;;
            *) fail "unknown argument: $1" "$usage" ;;
        esac
        shift
    done
}

is_kind() {
    [ "$context" = "$kind_context" ]
}

name_lines() { # name_lines NAME: before each line of the input
    awk -v name="$1" '{ print name ": " $0; fflush() }'
}

end_following() {
    # shellcheck disable=SC2046 # process ids
    kill $(jobs -p) 2>/dev/null || true
    ! is_kind || printf '\n%s\n' "the cluster goes on" \
        "just clean --k8s           takes the application off it" \
        "just clean --k8s --force   deletes it, and what was uploaded"
}

main "$@"
