#!/bin/sh
# What entropy collapse costs later: learn countdown, then countdown_sorted from the final weights,
# beside a control that learns countdown_sorted from the warm start. Table of doc/entropy.md.
#
#   experiments/sequential.sh [FOLDER]      SEEDS="1 2 3" JOBS=2 STEPS=300 (of each task)
OUT=${1:-runs/sequential}
STEPS=${STEPS:-300}
. "$(dirname "$0")/experiment.sh"

common="--eval-every 50 --eval-prompts 200 --rollouts-every 0"
tasks="--tasks countdown:$STEPS,countdown_sorted:$STEPS"
queue warm --task countdown --steps 0 $common
run_queue
for objective in grpo dapo repo_r adapo; do
    queue $objective --objective $objective $tasks $common
    for seed in $SEEDS; do
        queue_run "$seed" control-$objective --objective $objective --model "$OUT/warm-s$seed" \
            --task countdown_sorted --steps "$STEPS" $common
    done
done
run_queue
python3 experiments/table.py sequential "$OUT" "$STEPS"
