#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command of at most nine minutes; see bench/gpu_run.py.
#   bash bench/gpu_run.sh [FOLDER] [--dry-run] [--skip-build] [--only NAMES]
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
exec timeout --kill-after=15 540 "${PYTHON:-python3}" -m bench.gpu_run "$@"
