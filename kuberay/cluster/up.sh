#!/usr/bin/env bash
# Brings the application up on the Kind cluster: the cluster and what it needs (install.sh, which gets the arguments),
# images, manifests. Returns once all of it is ready.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What all pods together reserve, those of Kubernetes itself too, lies below. A machine of 8 GiB shows some less than that.
cores=4
memory_bytes=$((7 * 1024 * 1024 * 1024))

main() {
    need docker kind kubectl helm
    need_docker
    need_room
    # Not every system leads names under localhost to itself.
    "$python" -c 'import socket, sys; socket.getaddrinfo(sys.argv[1], 443)' "$host" 2>/dev/null ||
        fail "the name $host leads nowhere on this machine" "echo '127.0.0.1 $host' | sudo tee -a /etc/hosts"
    "$here/install.sh" "$@"

    image circles serve circles
    image circles-kserve kserve circles-serving

    local kustomization
    for kustomization in $kustomizations; do
        step "apply $kustomization"
        apply --kustomize "$kustomization"
    done
    roll_out
    step "the model server is ready (InferenceService circle-detector)"
    await true model_server_is_ready || tell_state circles-serving inferenceservice/circle-detector
}

need_room() {
    local there its_cores its_bytes
    there=$(docker info --format '{{.NCPU}} {{.MemTotal}}')
    read -r its_cores its_bytes <<<"$there"
    if [ "$its_cores" -lt "$cores" ] || [ "$its_bytes" -lt "$memory_bytes" ]; then
        fail "Docker has $its_cores cores and $((its_bytes / 1024 / 1024)) MiB; this wants $cores cores and 8 GiB" \
            "in Docker Desktop they are given under Settings, Resources"
    fi
}

image() { # image NAME TARGET NAMESPACE: built, and in the node; pods in the namespace that run an older one start again
    local id
    step "image $1:local"
    # Without attestations it is one image, and not an index whose other parts Kind would look for.
    BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker build --target "$2" --tag "$1:local" . >/dev/null
    id=$(docker image inspect --format '{{.Id}}' "$1:local")
    once "image-$1" "$id" load "$1:local" "$3"
}

load() { # load IMAGE NAMESPACE
    kind load docker-image "$1" --name "$cluster"
    kubectl delete pods --all --namespace "$2" >/dev/null
}

model_server_is_ready() {
    kubectl wait inferenceservice circle-detector --namespace circles-serving --for condition=Ready --timeout 1s
}

main "$@"
