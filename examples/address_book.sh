#!/bin/sh
# The tool task: an address book that the model changes by calls, one a turn, without seeing it.
# The short form is the built-in task, learnt from nothing by a model of 0.2M parameters; the long
# form is a chat model with examples/env_address_book.py as its environment. examples/README.md says
# what it costs and what to expect.
#
#     examples/address_book.sh short WHERE [OPTION...]          two processor cores
#     examples/address_book.sh long MODEL WHERE [OPTION...]     a GPU
#
# MODEL: a Hugging Face directory of a chat model, Qwen3-0.6B say. WHERE: a folder for the run.
# OPTIONs go to ./train.
set -e
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(dirname "$0")/..
form=$1
case $form in
short)
    [ $# -ge 2 ] || usage
    where=$2
    shift 2
    "$root/train" --task address_book --warm-start 220 --lr 3e-4 --steps 60 --eval-every 20 \
        --eval-prompts 100 --eval-samples 8 --save-every 0 --run "$where/address_book" "$@" ;;
long)
    [ $# -ge 3 ] || usage
    model=$2 where=$3
    shift 3
    "$root/train" --model "$model" --data "$root/examples/address_book.jsonl" --eval-share 0.2 \
        --max-turns 6 --max-tokens 256 --scorer "python3 '$root/examples/env_address_book.py'" \
        --objective repo --scale llm --steps 200 --prompts 16 --group 16 --minibatches 2 \
        --lr 2e-6 --eval-every 20 --eval-samples 8 --run "$where/address_book" "$@" ;;
*) usage ;;
esac
