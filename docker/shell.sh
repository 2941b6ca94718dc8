#!/usr/bin/env bash
# Opens a shell in the image, in this checkout.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: docker/shell.sh [cpu|gpu] [COMMAND...]

Opens a shell, or runs COMMAND, in the image branchynet:cpu or branchynet:gpu (default: gpu where nvidia-smi
finds a GPU, else cpu), which is built first if it is not there. The checkout is mounted: what is written to it,
results among it, stays on this machine and belongs to you. The folder that BRANCHYNET_DATA names is mounted too.
Nothing needs the network: `docker/shell.sh cpu ./get_results.sh --preset smoke`
TEXT
}

fail() {
    echo "docker/shell.sh: $1" >&2
    exit 2
}

has_gpu() {
    nvidia-smi -L >/dev/null 2>&1
}

target=cpu
if has_gpu; then
    target=gpu
fi
case ${1:-} in
    -h | --help)
        usage
        exit
        ;;
    -*) fail "unknown argument '$1', expected cpu, gpu or a command" ;;
    cpu | gpu)
        target=$1
        shift
        ;;
esac

options=(--rm --interactive --platform linux/amd64 --env HOME=/home/branchynet --volume "$root:/branchynet")
if [ -n "${BRANCHYNET_DATA:-}" ]; then
    [ -d "$BRANCHYNET_DATA" ] || fail "BRANCHYNET_DATA is $BRANCHYNET_DATA, expected a folder"
    data=$(cd "$BRANCHYNET_DATA" && pwd)
    options+=(--volume "$data:/data" --env BRANCHYNET_DATA=/data)
fi
if [ "$target" = gpu ] && has_gpu; then
    options+=(--gpus all)
fi
if [ -t 0 ] && [ -t 1 ]; then
    options+=(--tty)
fi

docker image inspect "branchynet:$target" >/dev/null 2>&1 || "$root/docker/build.sh" "$target"

# A rootless engine's root is its caller; elsewhere the caller's ids are the same inside.
case $(docker info --format '{{.SecurityOptions}}') in
    *rootless*) options+=(--user 0:0) ;;
    *) options+=(--user "$(id -u):$(id -g)") ;;
esac
exec docker run "${options[@]}" "branchynet:$target" "$@"
