#!/usr/bin/env python3
"""Sends a run's metrics to Weights & Biases, while it grows or afterwards.

    scripts/to_wandb.py RUN [--project NAME] [--name NAME] [--once] [--new] [--every SECONDS]

Follows RUN/metrics.jsonl until interrupted (Ctrl-C), or with --once to its present end. What was
sent is remembered in RUN/wandb.json, so that a second call goes on after the last step sent, in
the same run of W&B; --new begins another one. So does a run that was started anew: ./train
--overwrite removes RUN/wandb.json with the rest of the old run.

Evaluations are sent as eval/TASK/pass@1 and so on: at the border of two tasks both are evaluated
at one step, and W&B keeps one value of a name per step.

Needs wandb (python3 -m pip install wandb). Exit codes: 0 done, 2 the input is wrong.
"""

import argparse
import json
import math
import os
import sys
import time
import uuid


def fail(message):
    print(f"to_wandb.py: {message}", file=sys.stderr)
    sys.exit(2)


def load_json(path):
    """The object in a file; {} without one, or if it is not JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class Follower:
    """New whole lines of a log that may be cut and written anew (a resumed run drops the steps past
    its checkpoint)."""

    def __init__(self, path):
        self.path, self.inode, self.offset = path, None, 0

    def read(self):
        """(began anew, lines): the whole lines since the last call."""
        with open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            anew = status.st_ino != self.inode or status.st_size < self.offset
            if anew:
                self.inode, self.offset = status.st_ino, 0
            file.seek(self.offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1   # the rest is still being written
        self.offset += whole
        return anew, data[:whole].splitlines()


def parse_row(line):
    """(step, metrics) of a line, or None if it is no step. Null stands for not measured."""
    try:
        row = json.loads(line)
        step = row["step"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        return None
    return step, {name_of(key, row): value for key, value in row.items()
                  if key != "step" and value is not None
                  and not (isinstance(value, float) and math.isnan(value))}


def name_of(key, row):
    """What W&B calls a key: an evaluation's names its task."""
    task = row.get("task")
    if key.startswith("eval/") and isinstance(task, str):
        return f"eval/{task}/{key[len('eval/'):]}"
    return key


class Sender:
    """Hands rows to W&B in the order of their steps, each once."""

    def __init__(self, run, memory, path):
        self.run, self.memory, self.path = run, memory, path
        self.floor = self.last = memory["step"]
        self.remembered = os.path.exists(path)   # in a file that must stay

    def forgotten(self):
        """Was the memory removed? Then ./train --overwrite has started the run anew."""
        return self.remembered and not os.path.exists(self.path)

    def send(self, anew, lines):
        """Returns how many rows were sent."""
        if anew:
            self.floor = self.last   # a file from its start: what was sent of it comes again
        sent = 0
        for row in filter(None, map(parse_row, lines)):
            step, metrics = row
            # One step may have two lines (an evaluation beside it), so equal to last is news.
            if step > self.floor and step >= self.last:
                self.run.log(metrics, step=step)
                self.last, sent = step, sent + 1
        if sent and not self.forgotten():
            self.memory["step"] = self.last
            self.save()
        return sent

    def save(self):
        temporary = self.path + ".tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.memory, file)
        os.replace(temporary, self.path)
        self.remembered = True


def parse_arguments():
    parser = argparse.ArgumentParser(description="Sends a run's metrics to Weights & Biases.")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--project", default="policy.c",
                        help="project of W&B (default %(default)s)")
    parser.add_argument("--name", help="name in W&B (default: the directory's)")
    parser.add_argument("--once", action="store_true", help="stop at the end of the file")
    parser.add_argument("--new", action="store_true", help="begin another run of W&B")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=5,
                        help="how often to look for new steps (default %(default)s)")
    arguments = parser.parse_args()
    if not 0 < arguments.every < math.inf:
        parser.error("--every must be more than 0")
    return arguments


def begin(wandb, arguments, path, memory):
    """A sender to a run of W&B: the remembered one, or with {} a new one."""
    if not isinstance(memory.get("id"), str) or not isinstance(memory.get("step"), int):
        memory = {"id": uuid.uuid4().hex[:8], "step": -1}
    name = arguments.name or os.path.basename(os.path.abspath(arguments.run))
    run = wandb.init(project=arguments.project, name=name, id=memory["id"], resume="allow",
                     config=load_json(os.path.join(arguments.run, "config.json")))
    return Sender(run, memory, path)


def follow(sender, metrics, arguments):
    """Returns how many rows were sent: at the end of the file, on Ctrl-C, or when the run was
    started anew."""
    follower, sent = Follower(metrics), 0
    try:
        while not sender.forgotten():
            try:
                sent += sender.send(*follower.read())
            except FileNotFoundError:   # the run is being started anew
                pass
            if arguments.once:
                return sent
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        arguments.once = True
    return sent


def main():
    arguments = parse_arguments()
    metrics = os.path.join(arguments.run, "metrics.jsonl")
    try:
        open(metrics, "rb").close()
    except OSError as error:
        fail(f"{metrics}: {error.strerror}; a run writes it from its first step on")
    try:
        import wandb
    except ImportError:
        fail("wandb is missing; install it with: python3 -m pip install wandb")
    path = os.path.join(arguments.run, "wandb.json")
    memory = {} if arguments.new else load_json(path)
    while True:
        sender = begin(wandb, arguments, path, memory)
        try:
            sent = follow(sender, metrics, arguments)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}")
        finally:
            sender.run.finish()
        print(f"to_wandb.py: sent {sent} lines, to step {sender.last}", flush=True)
        if arguments.once:
            return
        print("to_wandb.py: the run was started anew: on to another run of W&B", flush=True)
        memory = {}


if __name__ == "__main__":
    main()
