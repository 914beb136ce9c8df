#!/usr/bin/env bash
# Shows the addresses of what runs on the Kind cluster.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_cluster
step "endpoints"
url=$(gateway_url)
model_server=http://circle-detector.circles-serving.serving.localhost:$(published_port "$http_node_port")
end_steps \
    "documentation          $url/docs" \
    "upload                 POST $url/images/" \
    "inference, V1 and V2   $url/v1/models, $url/v2" \
    "V2 over gRPC           ${url#https://} (TLS)" \
    "model server           $model_server/v1/models" \
    "health, readiness      $url/health, $url/ready" \
    "certificate authority  $authority (curl --cacert; written by just test --k8s)" \
    "Ray dashboard          http://127.0.0.1:8265 after" \
    "                       kubectl --context $context --namespace circles port-forward \\" \
    "                         \$(kubectl --context $context --namespace circles get pod --output name \\" \
    "                         --selector app.kubernetes.io/component=head) 8265"
