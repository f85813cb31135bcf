#!/bin/sh
# gsm_symbolic: school arithmetic in words, the answer a number, judged by the verifier `number`.
# The short form asks for the number alone, after a supervised start; the long form leaves the model
# room to think. examples/README.md says what it costs and what to expect.
#
#     examples/gsm_symbolic.sh short MODEL WHERE [OPTION...]     two processor cores
#     examples/gsm_symbolic.sh long MODEL WHERE [OPTION...]      a GPU
#
# MODEL: a Hugging Face directory: short, SmolLM2-135M (dev/data/smollm2.py); long, one that can
# reason, Qwen3-0.6B say. WHERE: a folder for the prompts and the runs; a prompts.jsonl or lessons
# that are there already are used. OPTIONs go to every ./train.
set -e
[ $# -ge 3 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
form=$1 model=$2 where=$3
shift 3
root=$(dirname "$0")/..

mkdir -p "$where"
[ -e "$where/prompts.jsonl" ] ||
    python3 "$root/dev/data/reasoning.py" gsm_symbolic --size 2000 --seed 1 --lessons \
        --out "$where/prompts.jsonl"

common() {
    "$root/train" --data "$where/prompts.jsonl" --system '' --reward number \
        --attention-entropy-every 0 --save-every 0 "$@"
}
case $form in
short)
    brief() {
        common --prompt-template "$root/examples/gsm_symbolic_short.txt" --max-tokens 16 \
            --max-prompt 96 --eval-prompts 32 --eval-samples 4 --eval-every 60 "$@"
    }
    [ -e "$where/lessons" ] ||
        brief --model "$model" --objective ce --steps 30 --prompts 16 --lr 5e-5 \
            --run "$where/lessons" "$@"
    [ ! -e "$where/lessons" ] || model=$where/lessons     # not there after --dry-run
    brief --model "$model" --objective repo --scale llm --steps 60 --prompts 4 --group 8 \
        --minibatches 1 --lr 2e-5 --run "$where/reinforced" "$@" ;;
long)
    common --model "$model" --prompt-template "$root/examples/gsm_symbolic_long.txt" \
        --max-tokens 512 --objective repo --scale llm --steps 300 --prompts 64 --group 8 \
        --minibatches 2 --lr 2e-6 --eval-every 25 --eval-prompts 100 --eval-samples 4 \
        --run "$where/reinforced" "$@" ;;
*) echo "$0: short or long, not $form" >&2; exit 2 ;;
esac
