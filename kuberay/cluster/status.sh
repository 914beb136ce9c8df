#!/usr/bin/env bash
# Shows what runs on the Kind cluster.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_cluster
step "status"
kubectl get rayservices,pods --namespace circles
echo
kubectl get inferenceservices,pods --namespace circles-serving
