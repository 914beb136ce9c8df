#!/bin/sh
# Writes what is installed in .venv, with versions and licences, as a CycloneDX bill of materials: build/sbom.json, or
# the file that is named.
set -eu
cd "$(dirname "$0")/.."

# In an environment of its own: with what it brings to check documents, jsonschema builds a parser of addresses whenever it
# is imported, and each process of Ray imports it. All of them would start a second later.
tool=build/sbom/bin/cyclonedx-py
if [ ! -x "$tool" ]; then
    .venv/bin/python -m venv build/sbom
    build/sbom/bin/pip --disable-pip-version-check install --quiet cyclonedx-bom==7.5.0
fi
"$tool" environment .venv --pyproject pyproject.toml --output-reproducible --output-file "${1:-build/sbom.json}"
