#!/usr/bin/env bash
# Builds the documentation site, checks its links and runs the examples in docstrings: docs/build.sh [DIR]
# DIR (default: docs/_build) receives html/ and doctest/. It needs what docker/install.sh --dev installs, and no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${BRANCHYNET_VENV:-.venv}/bin/python
out=${1:-docs/_build}
options=(--fail-on-warning --keep-going --nitpicky --quiet -d "$out/doctrees")

rm -rf docs/api # pages of modules, made again
"$python" -m sphinx "${options[@]}" -b html docs "$out/html"
"$python" docs/check_links.py "$out/html"
"$python" -m sphinx "${options[@]}" -b doctest docs "$out/doctest"
echo "The site is in $out/html/index.html"
