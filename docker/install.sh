#!/usr/bin/env bash
# The one installer, for images and bare machines alike.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$root/docker

usage() {
    cat <<'TEXT'
usage: docker/install.sh [--venv DIR] [--gpu] [--dev]

Installs the package (editable) and its pinned, hash-checked dependencies into a virtual environment.
Takes seconds when nothing changed. What was asked for once (--gpu, --dev) stays.

  --venv DIR  the virtual environment (default: what BRANCHYNET_VENV names, else .venv of the checkout)
  --gpu       with CuPy and the CUDA 12 libraries (Linux x86-64; the driver is the machine's)
  --dev       with what the tests need

The environment variable PYTHON names the Python to use (3.9-3.13); else the newest that fits is taken.
TEXT
}

fail() {
    echo "docker/install.sh: $1" >&2
    exit 2
}

venv=${BRANCHYNET_VENV:-$root/.venv}
options=""
while [ $# -gt 0 ]; do
    case $1 in
        --venv)
            [ -n "${2:-}" ] || fail "--venv names no folder, expected --venv DIR"
            venv=$2
            shift
            ;;
        --gpu | --dev) options+=" ${1#--}" ;;
        -h | --help)
            usage
            exit
            ;;
        *) fail "unknown argument '$1', expected --venv DIR, --gpu, --dev or --help" ;;
    esac
    shift
done
stamp=$venv/branchynet-installed

# Another Python's packages must not pass for installed ones.
unset PYTHONPATH PYTHONHOME

# Prints the version of a Python that fits, or why it does not. A command may exist and still not run (pyenv's
# shims), so each is really asked; the words are for any Python, 2.7 included.
probe() {
    command -v "$1" >/dev/null || {
        echo "is not to be found"
        return 1
    }
    "$1" - 2>&1 <<'PYTHON'
import sys
if not (3, 9) <= sys.version_info[:2] <= (3, 13):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("lacks the module " + error.name)
print("%d.%d.%d" % sys.version_info[:3])
PYTHON
}

# Two runs at once take turns; the later one finds the work done.
if command -v flock >/dev/null; then
    exec 9<"${BASH_SOURCE[0]}"
    flock 9
fi

# An interrupted installation may have left an environment without pip.
present=$(probe "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1) || present=""
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    version=$(probe "$python") || fail "PYTHON=$python ${version%%$'\n'*}, expected Python 3.9-3.13 with venv"
    [ -n "$version" ] || fail "PYTHON=$python is no Python, expected Python 3.9-3.13 with venv"
elif [ -n "$present" ]; then
    python=$venv/bin/python
    version=$present
else
    seen=""
    for python in python3.{13,12,11,10,9} "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.{13,12,11,10,9}.*/bin/python python3 python ""; do
        [ -n "$python" ] || fail "no Python 3.9-3.13 with venv found (${seen:-none on PATH}); install one (Debian: apt-get install python3 python3-venv) or name it in PYTHON"
        version=$(probe "$python") && break
        case $version in "is Python"* | "lacks the module"*) seen+="${seen:+, }$python $version" ;; esac
    done
fi

state() {
    {
        echo "$root $version"
        cat "$lock"/*.txt "$root/setup.py" "$root/pyproject.toml" "${BASH_SOURCE[0]}"
    } | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

state=$(state)
installed="" installed_options=""
[ ! -e "$stamp" ] || read -r installed installed_options <"$stamp" || true # it may be empty
missing=0
for option in $options; do
    case " $installed_options " in
        *" $option "*) ;;
        *)
            installed_options+="${installed_options:+ }$option"
            missing=1
            ;;
    esac
done
if [ "$installed" = "$state" ] && [ $missing = 0 ]; then
    exit
fi

if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    fail "$venv is neither empty nor a virtual environment"
fi
if [ -e "$venv" ] && [ ! -w "$venv" ]; then
    fail "$venv is not what this checkout's lock files say and cannot be written; if it is an image's, build the image again: docker/build.sh; else name another folder in BRANCHYNET_VENV"
fi
mkdir -p "$venv" 2>/dev/null || fail "$venv cannot be made; name another folder in BRANCHYNET_VENV"
echo "Installing into $venv (Python $version${installed_options:+, $installed_options}): minutes the first time, seconds later"

# Removed before the first change and written after the last: an interrupted install is done again.
rm -f "$stamp"
[ "$present" = "$version" ] || "$python" -m venv --clear "$venv" || fail "$python cannot make $venv; name another Python in PYTHON"

pip() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@" ||
        fail "pip could not install into $venv (its lines above say why); mend that, such as the network, and run this again"
}

requirements=(-r "$lock/requirements-cpu.txt")
for option in $installed_options; do
    requirements+=(-r "$lock/requirements-$option.txt")
done
# Chainer comes as source only, all Python. It builds with the locked setuptools, where pip's isolated build would
# fetch one that nobody checked.
pip install --require-hashes -r "$lock/requirements-build.txt"
pip install --require-hashes --no-build-isolation "${requirements[@]}"
pip install --no-deps --no-build-isolation --editable "$root"

echo "$state $installed_options" >"$stamp"
