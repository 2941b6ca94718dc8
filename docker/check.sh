#!/usr/bin/env bash
# Proves the Dockerfile on a machine without Docker: docker/check.sh [cpu|gpu]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'TEXT'
usage: docker/check.sh [cpu|gpu] [--cache DIR] [--mirror URL]

Makes a bare Debian with debootstrap, replays the Dockerfile's steps for the target (default: cpu) in it by chroot,
and runs the smoke preset there as the image's user, without network. For gpu also: that CuPy and cuDNN load and
that a kernel compiles, which needs no GPU. Needs root, debootstrap and Python 3.9 or newer; everything that it
makes is removed again, but for the downloads.

  --cache DIR   where downloads stay, and the root while it runs (default: ~/.cache/branchynet-check)
  --mirror URL  a Debian mirror (its security archive is URL-security) in place of the snapshot that the Dockerfile
                names; without it this machine's own mirror is taken where the snapshot cannot be reached

Proxies, pip's configuration and the certificates that pip trusts are this machine's.
TEXT
}

fail() {
    echo "docker/check.sh: $1" >&2
    exit 2
}

target=""
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/branchynet-check
mirror=""
while [ $# -gt 0 ]; do
    case $1 in
        cpu | gpu)
            [ -z "$target" ] || fail "targets are $target and $1, expected one"
            target=$1
            ;;
        --cache | --mirror)
            [ -n "${2:-}" ] || fail "$1 names nothing, expected $1 $([ "$1" = --cache ] && echo DIR || echo URL)"
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        -h | --help)
            usage
            exit
            ;;
        *) fail "unknown argument '$1', expected cpu, gpu, --cache DIR, --mirror URL or --help" ;;
    esac
    shift
done

target=${target:-cpu}
[ "$(id -u)" = 0 ] || fail "user is $(id -un), expected root (debootstrap and chroot need it)"
for tool in debootstrap chroot unshare python3; do
    command -v "$tool" >/dev/null || fail "$tool is not to be found (Debian: apt-get install debootstrap util-linux python3)"
done

# The mirror that apt takes this release's packages from on this machine.
find_mirror() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null \
        | sed -n "s|^$1 \(.*[^/]\)/*$|\1|p" | head -n 1
}

default() {
    python3 "$here/replay.py" argument "$1"
}

reachable() {
    python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=30)' "$1" 2>/dev/null
}

security=$mirror-security
arguments=()
if [ -z "$mirror" ] && ! reachable "$(default DEBIAN)/dists/bookworm/InRelease"; then
    mirror=$(find_mirror bookworm) || true # no apt-get, or it fails: said below
    security=$(find_mirror bookworm-security) || true
    if [ -z "$mirror" ] || [ -z "$security" ]; then
        fail "$(default DEBIAN) cannot be reached and apt knows no mirror of bookworm here, expected --mirror URL"
    fi
fi
if [ -n "$mirror" ]; then
    echo "NOTE: not Debian's snapshot of $(default SNAPSHOT), but today's packages of a mirror: their versions differ from the image's."
    arguments=(--argument "DEBIAN=$mirror" --argument "DEBIAN_SECURITY=$security")
fi

mkdir -p "$cache" 2>/dev/null || fail "--cache is $cache, expected a folder that can be written"
cache=$(cd "$cache" && pwd)
image=$(mktemp -d "$cache/image.XXXXXX")
chmod 755 "$image"

commands=(--run './get_results.sh --preset smoke --only lenet_mnist')
if [ "$target" = gpu ]; then
    commands+=(--run 'python docker/check_cuda.py')
fi

# Mounts and processes live in namespaces of their own and end with unshare, however it ends.
unshare --mount --pid --fork --kill-child python3 "$here/replay.py" replay "$target" "$image" --cache "$cache" \
    ${arguments[@]+"${arguments[@]}"} "${commands[@]}" &
replay=$!
trap '{ kill -KILL "$replay" || true; wait; } 2>/dev/null; rm -rf --one-file-system "$image"' EXIT
wait "$replay"
echo "docker/check.sh: $target passed in $SECONDS s"
