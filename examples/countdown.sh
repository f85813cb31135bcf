#!/bin/sh
# Countdown with SmolLM2-135M: reach a number with three others, each used once. A short supervised
# start teaches the form of an answer, then policy gradient with the reward of reasoning-gym.
# examples/README.md says what it costs and what to expect.
#
#     examples/countdown.sh short MODEL WHERE [OPTION...]     two processor cores
#     examples/countdown.sh long MODEL WHERE [OPTION...]      a GPU
#
# MODEL: a Hugging Face directory, such as dev/data/smollm2.py makes. WHERE: a folder for the
# prompts and the runs; a prompts.jsonl or lessons that are there already are used. OPTIONs go to
# every ./train.
set -e
[ $# -ge 3 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
form=$1 model=$2 where=$3
shift 3
root=$(dirname "$0")/..

case $form in
short)
    numbers='min_numbers=3 max_numbers=3 min_value=1 max_value=10 min_target=1 max_target=50'
    size=4000 max_tokens=24
    lessons='--steps 40 --prompts 32 --lr 5e-5'
    reinforce='--steps 60 --prompts 4 --group 8 --minibatches 1 --lr 2e-5
        --eval-every 60 --eval-prompts 64 --eval-samples 8' ;;
long)
    numbers='min_numbers=3 max_numbers=4 min_value=1 max_value=50 min_target=1 max_target=99'
    size=20000 max_tokens=48
    lessons='--steps 100 --prompts 64 --lr 2e-5'
    reinforce='--steps 400 --prompts 64 --group 16 --minibatches 2 --lr 5e-6
        --eval-every 50 --eval-prompts 200 --eval-samples 16' ;;
*) echo "$0: short or long, not $form" >&2; exit 2 ;;
esac

mkdir -p "$where"
# $numbers, $lessons and $reinforce are several words each, and so without quotes.
[ -e "$where/prompts.jsonl" ] ||
    python3 "$root/dev/data/reasoning.py" countdown --size "$size" --seed 7 --lessons \
        --out "$where/prompts.jsonl" --set $numbers

common() {
    "$root/train" --data "$where/prompts.jsonl" --prompt-template "$root/examples/countdown.txt" \
        --system '' --max-tokens "$max_tokens" --attention-entropy-every 0 --save-every 0 "$@"
}
[ -e "$where/lessons" ] ||
    common --model "$model" --objective ce --reward exact --eval-every 0 --run "$where/lessons" \
        $lessons "$@"
[ ! -e "$where/lessons" ] || model=$where/lessons     # not there after --dry-run
common --model "$model" --objective repo --scale llm --run "$where/reinforced" \
    --scorer "python3 '$root/examples/reward_reasoning_gym.py'" $reinforce "$@"
