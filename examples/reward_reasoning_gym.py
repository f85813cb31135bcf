#!/usr/bin/env python3
"""Rewards by the package reasoning-gym, for prompts that dev/data/reasoning.py made.

    ./train --model DIR --data countdown.jsonl --scorer 'python3 examples/reward_reasoning_gym.py'

The answer is what stands between the last <answer> and </answer>; without them the last line that
is not empty. It is given to the task's own score_answer: 1 is right, and many tasks give a little
for the right form. A prompt of another origin, or one that the package cannot score, gets null.

Some tasks of the package run the answer as Python, and a model can write anything. Of these,
countdown and puzzle24 are given only arithmetic here (digits and + - * / ( ), no power); the
others are scored only with --run-answers, which belongs into a sandbox.
"""
import argparse
import functools
import inspect
import json
import re
import sys

from reasoning_gym.factory import DATASETS, create_dataset
from reasoning_gym.utils import extract_answer

ARITHMETIC = {"countdown", "puzzle24"}
LONGEST = 300  # characters of an arithmetic answer


@functools.lru_cache(maxsize=None)
def scoring(name):
    """The task of that name with its default settings: score_answer reads the metadata, and only
    puzzle24 a setting too."""
    return create_dataset(name, size=1, seed=0)


@functools.lru_cache(maxsize=None)
def runs_answers(name):
    """Whether the task's module gives an answer to Python: eval, or sympy's parse_expr."""
    source = inspect.getsource(inspect.getmodule(DATASETS[name][0]))
    return re.search(r"\b(eval|exec|parse_expr|sympify)\(\s*(answer|user|predicted)", source)


@functools.lru_cache(maxsize=None)
def say_once(text):
    print(text, file=sys.stderr, flush=True)


def answer_in(completion):
    tagged = extract_answer(completion)
    written = [line.strip() for line in completion.splitlines() if line.strip()]
    return tagged if tagged is not None else written[-1] if written else ""


def arithmetic(answer):
    return (len(answer) <= LONGEST and "**" not in answer and "//" not in answer and
            re.fullmatch(r"[0-9+*/() -]+", answer) is not None)


def reward_of(item, run_answers):
    metadata = item.get("metadata") or {}
    metadata = metadata.get("metadata") or metadata   # beside other keys of the prompt's line
    name = metadata.get("source_dataset")
    if name not in DATASETS:
        say_once(f"not a prompt of reasoning-gym: its metadata has source_dataset {name}")
        return None
    answer = answer_in(item["completion"])
    if name in ARITHMETIC and not arithmetic(answer):
        return 0.0
    if name not in ARITHMETIC and not run_answers and runs_answers(name):
        say_once(f"{name} runs answers as Python: not scored without --run-answers")
        return None
    entry = {"question": item["prompt"], "answer": item.get("answer"), "metadata": metadata}
    return float(scoring(name).score_answer(answer, entry))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-answers", action="store_true",
                        help="also tasks that run an answer as Python")
    arguments = parser.parse_args()
    for line in sys.stdin:
        item = json.loads(line)
        try:
            reward = reward_of(item, arguments.run_answers)
        except Exception as error:  # pylint: disable=broad-except: one prompt, not the run
            say_once(f"not scored: {type(error).__name__}: {error}")
            reward = None
        print(json.dumps({"id": item["id"], "reward": reward}), flush=True)


if __name__ == "__main__":
    main()
