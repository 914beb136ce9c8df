#!/bin/sh
# Looks for the locked packages among known vulnerabilities (OSV's), and fails when one is there. Where that database
# cannot be reached it says so and passes; with AUDIT=required it fails then, too. OSV_URL names another address of it.
set -eu
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# torch is pinned outside of the lock.
{ cat "${1:-requirements.lock}" && grep -o 'torch==[0-9.]*' pyproject.toml; } >"$folder/requirements.txt"
# Not by the package index: what that does not know passes there without a word.
if .venv/bin/pip-audit --vulnerability-service osv ${OSV_URL:+--osv-url "$OSV_URL"} --requirement "$folder/requirements.txt" \
    --no-deps --disable-pip --strict --progress-spinner off --timeout 10 >"$folder/said" 2>&1; then
    cat "$folder/said"
    exit 0
fi
if [ "${AUDIT:-}" != required ] && tail -n 1 "$folder/said" | grep -qE '^requests\.exceptions\.(ConnectionError|ConnectTimeout|ReadTimeout|ProxyError):'; then
    echo "NOT audited: the database of vulnerabilities cannot be reached" >&2
    exit 0
fi
cat "$folder/said" >&2
exit 1
