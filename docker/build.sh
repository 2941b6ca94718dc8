#!/usr/bin/env bash
# Builds the image branchynet:cpu or branchynet:gpu from this checkout.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: docker/build.sh [cpu|gpu] [ARGUMENT...]

Builds the image branchynet:cpu or branchynet:gpu (default: gpu where nvidia-smi finds a GPU, else cpu).
Further arguments go to `docker build`, such as --build-arg SNAPSHOT=... (the Dockerfile lists them).
TEXT
}

fail() {
    echo "docker/build.sh: $1" >&2
    exit 2
}

target=cpu
if nvidia-smi -L >/dev/null 2>&1; then
    target=gpu
fi
case ${1:-} in
    -h | --help)
        usage
        exit
        ;;
    cpu | gpu)
        target=$1
        shift
        ;;
    "" | -*) ;;
    *) fail "unknown target '$1', expected cpu or gpu" ;;
esac

command -v docker >/dev/null || fail "docker is not installed: install Docker 23 or newer; docker/check.sh checks the image without Docker"
said=$(docker info 2>&1 >/dev/null) || fail "no Docker engine answers (${said##*$'\n'}); docker/check.sh checks the image without one"

# Docker gives the image's own times this second too, but only where it is told on the command line.
epoch=$(sed -n 's/^ARG SOURCE_DATE_EPOCH=//p' "$root/Dockerfile")

# BuildKit is the default since Docker 23, and the locked packages are held to one processor architecture.
DOCKER_BUILDKIT=1 exec docker build --platform linux/amd64 --target "$target" --tag "branchynet:$target" \
    --build-arg "SOURCE_DATE_EPOCH=$epoch" "$@" "$root"
