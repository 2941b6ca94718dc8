#!/usr/bin/env bash
# Trains, sweeps and compares with the published numbers; installs into .venv if need be.
#
#   ./get_results.sh [--preset smoke|quick|reduced|paper] [--only lenet_mnist,...] [--variant code|paper]
#                    [--seeds N|A-B] [--jobs N] [--device auto|cpu|gpu:0] [--profile portable|fast]
#                    [--require-clean] [--out DIR] [--resume]
#   ./get_results.sh --from-results
#
# The second trains nothing: it makes every table and figure again from the weights that results/ holds, and ends
# with status 1 where accuracies or exits differ from those recorded.
#
# Exit status: 0 all claims that were checked hold, 1 a claim fell short, 2 bad usage, no data or no installation,
# 3 an unexpected error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

for word in "$@"; do
    if [ "$word" = --help ] || [ "$word" = -h ]; then # the comment above; nothing is installed for it
        while IFS= read -r line && [ "$line" != "set -euo pipefail" ]; do
            case $line in "#!"*) ;; *) line=${line#"#"} && echo "${line# }" ;; esac
        done <"${BASH_SOURCE[0]##*/}"
        exit
    fi
done

options=()
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    options=(--gpu)
fi
docker/install.sh ${options[@]+"${options[@]}"} || exit 2 # it has said why
exec "${BRANCHYNET_VENV:-.venv}/bin/branchynet" reproduce "$@"
