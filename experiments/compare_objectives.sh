#!/bin/sh
# GRPO, DAPO, REPO-R, REPO-D, ADAPO and the entropy bonus on the built-in task, three seeds each:
# the tables of doc/entropy.md.
#
#   experiments/compare_objectives.sh [FOLDER]      SEEDS="1 2 3" JOBS=2 STEPS=600
#
# Cost: see doc/entropy.md; interrupted, start it again and it goes on.
OUT=${1:-runs/compare}
STEPS=${STEPS:-600}
. "$(dirname "$0")/experiment.sh"

common="--steps $STEPS --eval-every 50 --eval-prompts 200 --rollouts-every 0"
queue grpo --objective grpo $common
queue dapo --objective dapo $common
queue repo_r --objective repo_r $common
queue repo_d --objective repo_d $common
queue adapo --objective adapo $common
queue bonus --objective rloo --entropy-control bonus $common
run_queue
python3 experiments/table.py compare "$OUT"
