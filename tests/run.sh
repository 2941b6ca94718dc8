#!/usr/bin/env bash
# Installs if need be and runs the tests: tests/run.sh [pytest arguments]
# Without arguments all but the slow ones, as many files side by side as there are cores. Tests marked gpu skip themselves
# where there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

docker/install.sh --dev
# The threads of OpenBLAS, of which every process has its own, spin while they wait for each other.
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
[ $# -gt 0 ] || set -- -m "not slow" -n auto --dist loadfile
exec "${BRANCHYNET_VENV:-.venv}/bin/python" -m pytest "$@"
