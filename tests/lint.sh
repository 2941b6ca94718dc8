#!/usr/bin/env bash
# Installs if need be, then lints the code, checks its format and its types: tests/lint.sh [--fix]
# With --fix it first mends what can be mended and formats the code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fix=""
case ${1:-} in
    "") ;;
    --fix) fix=1 ;;
    *)
        echo "tests/lint.sh: unknown argument '$1', expected --fix or nothing" >&2
        exit 2
        ;;
esac

docker/install.sh --dev
bin=${BRANCHYNET_VENV:-.venv}/bin

if [ -n "$fix" ]; then
    "$bin/ruff" check --quiet --fix-only .
    "$bin/ruff" format --quiet .
fi
status=0
"$bin/ruff" check . || status=1
"$bin/ruff" format --check . || status=1

# networks, datasets, experiments and benchmarks are subpackages when installed (setup.py): mypy sees them where they are then.
rm -rf build/mypy
mkdir -p build/mypy/branchynet
ln -s "$PWD"/branchynet/* "$PWD"/{networks,datasets,experiments,benchmarks} build/mypy/branchynet/
"$bin/mypy" || status=1
exit $status
