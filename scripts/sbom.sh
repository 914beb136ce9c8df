#!/bin/sh
# Writes what is installed in .venv, with versions and licences, as a CycloneDX bill of materials: build/sbom.json, or
# the file that is named.
set -eu
cd "$(dirname "$0")/.."

mkdir -p build
.venv/bin/cyclonedx-py environment .venv --pyproject pyproject.toml --output-reproducible \
    --output-file "${1:-build/sbom.json}"
