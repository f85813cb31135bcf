#!/bin/sh
# run_multi_gpu.sh OPTIONS: trains on all GPUs of this machine, one process on each
# (doc/scaling.md). --gpus among the options replaces `all`: how many, or a list as 0,2,3.
set -eu
program=$(dirname "$0")/../train
if [ ! -x "$program" ]; then
    echo "run_multi_gpu.sh: there is no ./train yet; make builds it" >&2
    exit 2
fi
exec "$program" --gpus all "$@"
