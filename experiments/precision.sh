#!/bin/sh
# Log-probabilities rounded to bf16 or fp16 before the ratio, against float32: does the rounding
# alone move entropy? (section "Precision" of doc/entropy.md)
#
#   experiments/precision.sh [FOLDER]      SEEDS="1 2 3" JOBS=2 STEPS=200
OUT=${1:-runs/precision}
STEPS=${STEPS:-200}
. "$(dirname "$0")/experiment.sh"

common="--steps $STEPS --eval-every 50 --eval-prompts 200 --rollouts-every 0"
for objective in grpo dapo; do
    for dtype in fp32 bf16 fp16; do
        queue $objective-$dtype --objective $objective --logp-dtype $dtype $common
    done
done
run_queue
python3 experiments/table.py precision "$OUT"
