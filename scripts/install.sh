#!/bin/sh
# Makes .venv with everything that serving, evaluation, tests and the words of the justfile need, in the exact versions
# of requirements.lock. Returns at once when nothing changed since the last time.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/installed
wanted=$(cat requirements.lock pyproject.toml scripts/install.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x .venv/bin/python ]; then
    exit 0
fi

python=
for candidate in python3.11 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        [ "$("$candidate" -c 'import sys; print(sys.version_info[:2])')" = "(3, 11)" ]; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: Python 3.11 is needed, and neither python3.11, python3 nor python is one" >&2
    exit 1
fi

echo "installing into .venv (once; some minutes)" >&2
# Nothing of an activated environment, of the caller's PYTHONPATH or of user packages may leak in.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
rm -f "$stamp"
"$python" -m venv .venv
pip() {
    .venv/bin/python -m pip --disable-pip-version-check install --quiet "$@"
}
# With hashes, so that what is installed is what was tried. torch comes apart, without one: its CPU wheel differs by
# source. Where the default source holds only its CUDA build, PIP_EXTRA_INDEX_URL can name one of CPU wheels.
pip --require-hashes -r requirements.lock
pip "$(grep -o 'torch==[0-9.]*' pyproject.toml)"
pip --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
