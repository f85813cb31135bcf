#!/usr/bin/env python3
"""A model of what prefill's attention reads from the decode cache, layer by layer.

Three ways: each prompt token is a decode row that reads its keys for itself; up to 16 such rows of
a run share a copy (attend_kernel, as it still stores tails again); tiles of 64 rows
(prefill_kernel). Counts keys and values that blocks bring to their multiprocessor, wherever from;
rows are those of the sampler: steps of at most STEP tokens, the first of them row 0. Nothing here
was measured.

    dev/prefill_bytes.py [PROMPTS TOKENS NH NKV HS]
"""
import sys

BYTES = 2  # an element in bf16
STEP, SHARE, TILE = 512, 16, 64


def steps(prompts, tokens):
    """The (prompt, position) of every row, step by step; a prompt's last token is no row."""
    rows = [(p, k) for p in range(prompts) for k in range(tokens - 1)]
    return [rows[i:i + STEP] for i in range(0, len(rows), STEP)]


def runs(step, unit):
    """Each run's last position: rows of one prompt between multiples of `unit` rows."""
    for i, (prompt, position) in enumerate(step):
        if i + 1 == len(step) or step[i + 1][0] != prompt or (i + 1) % unit == 0:
            yield position


def read(plan, unit, heads, HS):
    return sum(last + 1 for step in plan for last in runs(step, unit)) * heads * 2 * HS * BYTES


def report(prompts, tokens, NH, NKV, HS):
    plan = steps(prompts, tokens)
    stored = sum(map(len, plan)) * NKV * 2 * HS * BYTES
    pairs = sum(k + 1 for step in plan for _, k in step) * NH
    print(f"{prompts} x {tokens} tokens, {NH} heads on {NKV} of size {HS}: {len(plan)} steps, "
          f"{stored / 1e6:.2f} MB stored a layer, {4 * HS * pairs / 1e9:.2f} Gflop")
    for name, unit, heads in (("each row for itself", 1, NKV), ("16 rows share a copy", SHARE, NKV),
                              ("tiles of 64 rows", TILE, NH)):
        x = read(plan, unit, heads, HS)
        blocks = sum(1 for step in plan for _ in runs(step, unit)) * heads / len(plan)
        print(f"    {name:24} {x / 1e6:9.1f} MB   {4 * HS * pairs / x:6.1f} flop per byte"
              f"   {blocks:8.0f} runs x heads a step")


def main():
    numbers = [int(x) for x in sys.argv[1:6]]
    if len(numbers) == 5:
        report(*numbers)
        return
    for shape in ((12, 12, 64), (16, 8, 128)):
        report(1, 2048, *shape)
        report(64, 512, *shape)


if __name__ == "__main__":
    main()
