#!/usr/bin/env bash
# Installs if need be and runs the tests: tests/run.sh [pytest arguments]
# Without arguments all but the slow ones. Tests marked gpu skip themselves where there is no GPU. As many files run side
# by side as there are cores; -n 0 runs all in one process, as a debugger needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

docker/install.sh --dev
[ $# -gt 0 ] || set -- -m "not slow"
exec "${BRANCHYNET_VENV:-.venv}/bin/python" -m pytest -n auto --dist loadfile "$@"
