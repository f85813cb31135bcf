#!/bin/sh
# Why ADAPO holds entropy or does not: it acts only through clipped tokens, so the number of updates
# per rollout is swept, with its bound at the default and far above. Table of doc/entropy.md.
#
#   experiments/adapo.sh [FOLDER]      SEEDS="1 2 3" JOBS=2 STEPS=200
OUT=${1:-runs/adapo}
STEPS=${STEPS:-200}
. "$(dirname "$0")/experiment.sh"

common="--objective adapo --steps $STEPS --eval-every 100 --eval-prompts 200 --rollouts-every 0"
queue updates-1 --minibatches 1 --epochs 1 $common
queue updates-16 --minibatches 4 --epochs 4 $common
queue updates-16-max-10 --minibatches 4 --epochs 4 --clip-high-max 10 $common
run_queue
python3 experiments/table.py adapo "$OUT"
