"""./train --score beside transformers, on one model directory: exit code 0 if they agree.

    python dev/ref/compare_score.py DIR [--train ./train] [--tolerance 1e-5]
    python dev/ref/compare_score.py models/smollm2-f32 --lengths 2,17,300

Takes the prompts of dev/ref/check_export.py (its options work here), scores them with both, and
prints the largest differences of log-probability and entropy, in nats. Python computes in float32,
as ./train does on the CPU; the tolerance is relative to 1 + |value|.
"""
import argparse
import json
import shlex
import subprocess
import sys
import tempfile

import check_export


def score(command, folder, prompts):
    """What the program says of each prompt."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for ids in prompts:
            file.write(json.dumps({"tokens": ids}) + "\n")
        file.flush()
        done = subprocess.run([*shlex.split(command), "--model", folder, "--score", file.name],
                              stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"compare_score.py: {command} ended with exit code {done.returncode}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if len(found) != len(prompts):
        sys.exit(f"compare_score.py: {len(prompts)} lines in, {len(found)} out")
    return found


def largest(ours, theirs):
    """The largest difference relative to 1 + |value|; infinite where one is missing."""
    if len(ours) != len(theirs):
        return float("inf")
    return max((abs(a - b) / (1 + abs(b)) if a is not None else float("inf")
                for a, b in zip(ours, theirs)), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--train", default="./train", help="the program, with options if need be")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--lengths", default="2,17,64")
    parser.add_argument("--tokens")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    arguments = parser.parse_args()
    model, longest = check_export.load(arguments.folder, arguments.dtype)
    prompts = check_export.sequences(arguments.folder, model.config.vocab_size, longest, arguments)
    worst = 0
    for ours, ids in zip(score(arguments.train, arguments.folder, prompts), prompts):
        theirs = check_export.describe(model, ids)
        logp = largest(ours["logp"], theirs["logp"])
        entropy = largest(ours["entropy"], theirs["entropy"])
        worst = max(worst, logp, entropy)
        print(f"{len(ids):5d} tokens: log-probability {logp:.1e}, entropy {entropy:.1e}")
    agree = worst <= arguments.tolerance
    print(f"{'agree' if agree else 'DIFFER'}: largest {worst:.1e}, "
          f"tolerance {arguments.tolerance:.0e}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
