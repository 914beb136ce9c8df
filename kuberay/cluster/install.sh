#!/usr/bin/env bash
# Makes the Kind cluster, if there is none, and installs what the application needs there, in the versions of
# versions.env. What is there already is left alone. With --clean the cluster is made anew.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    case "${1:-}" in
        "" | --clean) ;;
        *) fail "unknown argument: $1" "install.sh [--clean]" ;;
    esac
    need docker kind kubectl helm
    need_docker

    step "Kind cluster $cluster"
    if cluster_exists && [ "${1:-}" = --clean ]; then
        kind delete cluster --name "$cluster"
    fi
    if cluster_exists; then
        wake_cluster
    else
        keeping_current_context create_cluster
    fi
    await true node_is_ready || fail "the cluster does not answer" "just dev --k8s --clean makes it anew"
    # The user of the application's image writes there.
    docker exec "$node" install -d -o 1000 -g 1000 -m 0750 /data/circles

    step "Gateway API ${GATEWAY_API_VERSION}"
    once gateway-api "$GATEWAY_API_VERSION" install_gateway_api

    release cert-manager cert-manager "$CERT_MANAGER_VERSION" "$CERT_MANAGER_CHARTS/cert-manager" \
        --set crds.enabled=true

    release istio-base istio-system "$ISTIO_VERSION" base --repo "$ISTIO_CHARTS"
    release istiod istio-system "$ISTIO_VERSION" istiod --repo "$ISTIO_CHARTS" --values "$here/values/istiod.yaml"
    release istio-cni istio-system "$ISTIO_VERSION" cni --repo "$ISTIO_CHARTS" --set profile=ambient
    release ztunnel istio-system "$ISTIO_VERSION" ztunnel --repo "$ISTIO_CHARTS" --set profile=ambient
    # Its name makes its label (istio: ingressgateway) and its service account, by which policies know it.
    release istio-ingressgateway istio-system "$ISTIO_VERSION" gateway --repo "$ISTIO_CHARTS" \
        --values "$here/values/istio-ingressgateway.yaml"

    step "namespaces in the mesh"
    apply --filename "$here/namespaces.yaml"

    step "Knative Serving ${KNATIVE_VERSION}"
    once knative "$KNATIVE_VERSION $NET_ISTIO_VERSION $(cksum <"$here/knative.yaml")" install_knative

    release kserve-crd kserve "$KSERVE_VERSION" "$KSERVE_CHARTS/kserve-crd"
    release kserve-resources kserve "$KSERVE_VERSION" "$KSERVE_CHARTS/kserve-resources" \
        --values "$here/values/kserve.yaml"

    release kuberay-operator kuberay-operator "$KUBERAY_VERSION" kuberay-operator --repo "$KUBERAY_CHARTS"
}

create_cluster() {
    sed -e "s/hostPort: 80\$/hostPort: ${HTTP_PORT:-80}/" -e "s/hostPort: 443\$/hostPort: ${HTTPS_PORT:-443}/" \
        "$here/kind.yaml" |
        kind create cluster --name "$cluster" --image "$KIND_NODE_IMAGE" --wait 5m --config - ||
        fail "the cluster cannot be made" \
            "is a port taken? HTTP_PORT=8080 HTTPS_PORT=8443 just dev --k8s names other ones" \
            "are there too few inotify instances? https://kind.sigs.k8s.io/docs/user/known-issues/"
}

wake_cluster() {
    if [ "$(docker inspect --format '{{.State.Running}}' "$node")" != true ]; then
        docker start "$node"
    fi
    if ! kubectl config get-contexts --output name | grep -Fx "$context" >/dev/null; then
        keeping_current_context kind export kubeconfig --name "$cluster"
    fi
}

keeping_current_context() { # Kind makes its own cluster the current one; whoever works on another is not surprised
    local before
    before=$(kubectl config current-context 2>/dev/null || true)
    "$@"
    [ -z "$before" ] || kubectl config use-context "$before" >/dev/null
}

node_is_ready() {
    kubectl wait node --all --for condition=Ready --timeout 30s
}

install_gateway_api() {
    apply --filename "$GATEWAY_API_RELEASES/$GATEWAY_API_VERSION/standard-install.yaml"
}

install_knative() {
    apply --filename "$KNATIVE_RELEASES/$KNATIVE_VERSION/serving-crds.yaml"
    kubectl wait crd --selector knative.dev/crd-install=true --for condition=Established --timeout 1m >/dev/null
    apply --filename "$KNATIVE_RELEASES/$KNATIVE_VERSION/serving-core.yaml"
    apply --filename "$NET_ISTIO_RELEASES/$NET_ISTIO_VERSION/net-istio.yaml"
    # Its webhooks judge the settings.
    kubectl wait deployment --all --namespace knative-serving --for condition=Available --timeout 10m >/dev/null
    apply --filename "$here/knative.yaml"
}

release() { # release NAME NAMESPACE VERSION CHART [ARGUMENT...]: unless this version is deployed, with these arguments
    local name=$1 namespace=$2 version=$3 chart=$4 mark history
    shift 4
    step "$name $version"
    mark="version $version, settings $(settings "$@" | cksum | cut -d ' ' -f 1)"
    history=$(helm history "$name" --namespace "$namespace" --max 1 --output json 2>/dev/null || true)
    case $history in
        *'"status":"deployed"'*"\"description\":\"$mark\""*)
            echo "    is there"
            return
            ;;
        # What was cut off in the middle is locked for good.
        *'"status":"pending-install"'*) helm uninstall "$name" --namespace "$namespace" --wait ;;
        *'"status":"pending-'*) helm rollback "$name" --namespace "$namespace" --wait ;;
    esac
    helm upgrade --install "$name" "$chart" --version "$version" "$@" --namespace "$namespace" --create-namespace \
        --description "$mark" --wait --timeout 10m >/dev/null
}

settings() { # settings ARGUMENT...: the arguments, and what is in those that are files
    local argument
    for argument in "$@"; do
        echo "$argument"
        [ ! -f "$argument" ] || cat "$argument"
    done
}

main "$@"
