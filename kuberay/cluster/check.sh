#!/usr/bin/env bash
# Runs the integration tests through the gateway of the Kind cluster; with --evaluate the evaluation too.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    local url outcome failed=0
    local -a summary=()
    case "${1:-}" in
        "" | --evaluate) ;;
        *) fail "unknown argument: $1" "check.sh [--evaluate]" ;;
    esac
    need_cluster
    url=$(gateway_url)
    mkdir -p "$(dirname "$authority")"
    # The cluster's own certificate authority, and no other: for HTTPS, and for gRPC.
    export SSL_CERT_FILE=$PWD/$authority GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=$PWD/$authority

    step "the gateway answers at $url"
    await show_pods gateway_answers "$url" || fail "the gateway does not answer at $url after $wait_s s" \
        "$python -m serve_app health --url $url" \
        "kubectl --context $context --namespace istio-system logs deployment/istio-ingressgateway"

    step "integration tests"
    outcome=passed
    "$python" -m pytest -q -m "serve and not control" --service-url "$url" --service-grpc "${url#https://}" ||
        outcome=failed failed=1
    summary+=("integration tests: $outcome")

    if [ "${1:-}" = --evaluate ]; then
        step "evaluation"
        outcome="passed, report in evaluation/output/k8s"
        "$python" -m evaluation --url "$url" --output evaluation/output/k8s ||
            outcome=failed failed=1
        summary+=("evaluation: $outcome")
    fi
    end_steps "${summary[@]}"
    return "$failed"
}

# shellcheck disable=SC2329 # called by await
gateway_answers() { # gateway_answers URL
    kubectl get secret circles-tls --namespace istio-system \
        --output 'go-template={{index .data "ca.crt" | base64decode}}' >"$authority" &&
        "$python" -m serve_app health --url "$1"
}

main "$@"
