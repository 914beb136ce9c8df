#!/usr/bin/env bash
# Brings the application up on the Kind cluster (up.sh, which gets the arguments), tests and evaluates it, and shows
# what it says until Ctrl-C.
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

"$here/up.sh" "$@"
status=0
"$here/check.sh" --evaluate || status=$?
[ "$status" != 130 ] || exit 130
"$here/endpoints.sh"
exec "$here/logs.sh" --follow
