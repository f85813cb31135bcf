#!/bin/sh
# The first-order prediction of the entropy change against the change itself, on all tokens of every
# rollout: correlation and slope per setting (doc/entropy.md).
#
#   experiments/entropy_dynamics.sh [FOLDER]      SEEDS="1 2 3" JOBS=2 STEPS=100
OUT=${1:-runs/dynamics}
STEPS=${STEPS:-100}
. "$(dirname "$0")/experiment.sh"

common="--objective rloo --steps $STEPS --eval-every 0 --rollouts-every 0 \
        --entropy-push-tokens 1000000"
for lr in 1e-5 3e-5 1e-4 3e-4 1e-3; do
    queue one-update-lr$lr --lr $lr --minibatches 1 $common
done
for lr in 3e-5 1e-4 3e-4; do
    queue four-updates-lr$lr --lr $lr --minibatches 4 $common
done
queue grpo-four-updates-lr1e-4 --lr 1e-4 --minibatches 4 $common --objective grpo
queue repo_r-four-updates-lr1e-4 --lr 1e-4 --minibatches 4 $common --objective repo_r
run_queue
python3 experiments/table.py dynamics "$OUT"
