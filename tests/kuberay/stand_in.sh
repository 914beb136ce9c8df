#!/usr/bin/env bash
# Stands in for docker, kind, kubectl, helm and the checkout's Python, under their names: writes down how it was called,
# and plays a cluster whose state is files in the folder $STAND_IN (test_cluster.py says which, and changes them too).
# Knows nothing but the shell's own commands, since a test calls it a hundred times.
set -euo pipefail

state() { # state NAME: what is in this file
    printf '%s' "$(<"$STAND_IN/$1")"
}

put() { # put NAME VALUE
    printf '%s' "$2" >"$STAND_IN/$1"
}

is_in() { # is_in NAME VALUE: whether one line of the file is this
    [[ $'\n'$(state "$1")$'\n' == *$'\n'$2$'\n'* ]]
}

is_about() { # is_about NAME: whether the file names a part of this call
    local part
    part=$(state "$1")
    [[ -n $part && $call == *"$part"* ]]
}

docker() {
    case $* in
        info\ --format\ *) state engine ;;
        inspect\ *) state node_running ;;
        start\ *) put node_running true ;;
        image\ inspect\ *) state "image-${*: -1}" ;;
        port\ *) echo "127.0.0.1:$(state "port-${3%/tcp}")" ;;
    esac
}

kind() {
    local config file
    case $* in
        get\ clusters) state clusters ;;
        create\ cluster\ *)
            IFS= read -r -d '' config || true
            put kind.yaml "$config"
            put clusters circles
            know_context
            put namespace ""
            put environment ""
            # Nothing is in it yet.
            for file in "$STAND_IN"/releases/* "$STAND_IN"/annotations/*; do
                [[ ! -e $file ]] || : >"$file"
            done
            ;;
        delete\ cluster\ *) put clusters "$(state others)" ;;
        export\ kubeconfig\ *) know_context ;;
    esac
}

know_context() {
    put contexts $'elsewhere\nkind-circles'
    put current_context kind-circles
}

helm() {
    local all=$* description release=releases/$2
    [[ $1 != upgrade ]] || release=releases/$3
    case $* in
        history\ *)
            [[ -s $STAND_IN/$release ]] || return 1
            state "$release"
            ;;
        uninstall\ *) put "$release" "" ;;
        rollback\ *) put "$release" '[{"status":"deployed"}]' ;;
        upgrade\ *)
            [[ ! -s $STAND_IN/$release || $(state "$release") != *pending* ]] || return 1
            description=${all#*--description }
            put "$release" "[{\"status\":\"deployed\",\"description\":\"${description% --wait*}\"}]"
            ;;
    esac
}

kubectl() {
    local all=$* annotation key
    case $* in
        config\ current-context) state current_context ;;
        config\ use-context\ *) put current_context "$3" ;;
        config\ get-contexts\ --output\ name) state contexts ;;
        config\ get-contexts\ *) is_in contexts "$3" ;;
        annotate\ *)
            annotation=${*: -1}
            key=${annotation%%=*}
            put "annotations/$2-${key#*/}" "${annotation#*=}"
            ;;
        get\ *annotations.circles*)
            key=${all##*/}
            key=annotations/$2-${key%\}}
            [[ ! -e $STAND_IN/$key ]] || state "$key"
            ;;
        get\ rayservice\ *upgradeStrategy*)
            key=$(state readiness)
            printf '%s,%s' "$(state strategy)" "${key%%,*}"
            ;;
        get\ rayservice\ *rayClusterConfig*) state description ;;
        get\ rayservice\ *generation*) state readiness ;;
        get\ namespace\ *labels.environment*) state environment ;;
        get\ namespace\ *) state namespace ;;
        get\ rayclusters\ *) state rayclusters ;;
        get\ pods\ *--output\ name) state pods ;;
        get\ secret\ *) echo "-----BEGIN CERTIFICATE-----" ;;
        get\ *) echo "what there is: $*" ;;
        apply\ --server-side*kuberay/overlays/*)
            put namespace namespace/circles
            put environment "${all##*/}"
            ;;
        diff\ *)
            echo "+ a difference"
            return "$(state diff)"
            ;;
        exec\ *)
            echo "said in answer to ${*: -1}"
            [[ $* != *" -F "* ]] || exec sleep infinity
            ;;
    esac
}

python() { # what the scripts ask it for succeeds
    true
}

tool=${0##*/}
call="$tool $*"
printf '%s\t%s\t%s\n' $$ "${SSL_CERT_FILE:-}" "$call" >>"$STAND_IN/calls"
if is_about failing; then
    echo "refused by the stand-in" >&2
    exit 1
fi
if is_about lasting; then
    put lasts yes
    exec sleep infinity
fi
case $tool in
    kubectl | helm)
        [[ $1 != --context && $1 != --kube-context ]] || shift 2
        ;;
esac
"$tool" "$@"
