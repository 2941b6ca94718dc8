#!/usr/bin/env bash
# Runs the tests on the oldest, a middle and the newest Python and NumPy: tests/matrix.sh [pytest arguments]
# Each has its virtual environment under .matrix. The newest has no pkg_resources any more, the others do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local python
    for python in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python; do
        if "$python" -c "import ensurepip, venv" 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "tests/matrix.sh: no Python $1 with venv found, neither on PATH nor in pyenv" >&2
    return 2
}

run() {
    local version=$1 numpy=$2 venv=.matrix/python$1 python
    shift 2
    if [ ! "$venv/installed" -nt pyproject.toml ]; then
        python=$(find_python "$version")
        "$python" -m venv --clear "$venv"
        PIP_CONSTRAINT=docker/build-constraints.txt PIP_BUILD_CONSTRAINT=docker/build-constraints.txt \
            "$venv/bin/pip" install --quiet --editable ".[dev]" "$numpy"
        if [ "$version" = 3.13 ]; then
            "$venv/bin/pip" install --quiet --upgrade setuptools
        fi
        touch "$venv/installed"
    fi
    "$venv/bin/python" -c 'import platform, numpy; print("Python", platform.python_version(), "NumPy", numpy.__version__)'
    "$venv/bin/python" -m pytest "$@" || status=1
}

[ $# -gt 0 ] || set -- -m "not slow"
status=0
run 3.9 "numpy==1.23.*" "$@"
run 3.11 "numpy==1.26.*" "$@"
run 3.13 numpy "$@"
exit $status
