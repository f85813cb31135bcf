#!/usr/bin/env python3
"""Tasks of the package reasoning-gym as prompts: made from a seed, without a network.

    pip install -r requirements-data.txt
    python3 dev/data/reasoning.py gsm_symbolic --size 2000 --out gsm_symbolic.jsonl
    python3 dev/data/reasoning.py countdown --size 2000 --seed 7 --out countdown.jsonl \\
        --set min_numbers=3 max_numbers=3 min_target=10 max_target=99
    python3 dev/data/reasoning.py --list

Out: `prompt`; `answer` (left out where the task has many and names none); `metadata`, all that the
package's score_answer needs: examples/reward_reasoning_gym.py calls it; with --lessons also
`completion`, the answer again, which supervised learning teaches (--objective ce). The same name,
seed, size and settings give the same file with the same version of the package. A prompt that was
there before is left out. --set NAME=VALUE changes a field of the task's configuration; a wrong
name is answered with those that there are.

Needs reasoning-gym (Apache-2.0).
"""
import argparse
import dataclasses
import json
import numbers
import sys

import lines

try:
    from reasoning_gym.factory import DATASETS, create_dataset
except ImportError as missing:
    lines.die(f"{missing}: pip install -r requirements-data.txt")


def setting(text):
    """NAME=VALUE; a VALUE that is not JSON is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def make_dataset(name, seed, size, settings):
    if name not in DATASETS:
        lines.die(f"reasoning-gym has no task {name}: --list shows those that it has")
    fields = [field.name for field in dataclasses.fields(DATASETS[name][1])]
    for wrong in settings.keys() - fields:
        lines.die(f"--set {wrong}: {name} has no such setting, only {', '.join(sorted(fields))}")
    try:
        return create_dataset(name, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        lines.die(f"{name}: {error}")


def as_text(value):
    """Numbers that JSON does not have (some of gsm_symbolic's are fractions) are their text."""
    if isinstance(value, numbers.Number):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def as_json(item):
    """The item as it will come back from the file: tuples are lists, keys are text."""
    return json.loads(json.dumps(item, default=as_text))


def check(dataset, name):
    """The package's own answer must be worth the same after the way through a file."""
    item = dataset[0]
    try:
        back = as_json(item)
        same = (dataset.score_answer(item["answer"], item) ==
                dataset.score_answer(back["answer"], back))
    except Exception as error:  # pylint: disable=broad-except: a hundred tasks, each its own
        lines.die(f"{name}: cannot be kept as JSON: {error}")
    if not same:
        lines.die(f"{name}: the package does not score what comes back from JSON as before")


def objects(dataset, lessons, skipped):
    seen = set()
    for index in range(len(dataset)):
        item = as_json(dataset[index])
        if item["question"] in seen:
            skipped.add(f"item {index}", "the same prompt was there before")
            continue
        seen.add(item["question"])
        ours = {"prompt": item["question"]}
        if item["answer"] is not None:
            ours["answer"] = item["answer"]
            if lessons:
                ours["completion"] = item["answer"]
        ours["metadata"] = item["metadata"]
        yield ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", nargs="?", help="such as gsm_symbolic or countdown")
    parser.add_argument("--size", type=int, default=1000, help="how many prompts (1000)")
    parser.add_argument("--seed", type=int, default=1, help="whole number (1)")
    parser.add_argument("--out", default="-", help="the file to write (standard output)")
    parser.add_argument("--set", type=setting, nargs="+", default=[], metavar="NAME=VALUE",
                        help="fields of the task's configuration")
    parser.add_argument("--lessons", action="store_true", help="also `completion`: the answer")
    parser.add_argument("--list", action="store_true", help="the names of all tasks")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(sorted(DATASETS)))
        sys.exit(0)
    if not arguments.task or arguments.size < 1:
        lines.die("needs a task, and a --size of at least 1")
    dataset = make_dataset(arguments.task, arguments.seed, arguments.size, dict(arguments.set))
    check(dataset, arguments.task)
    skipped = lines.Skipped()
    count = lines.write_objects(arguments.out, objects(dataset, arguments.lessons, skipped))
    lines.report(arguments.out, count, skipped)


if __name__ == "__main__":
    main()
