#!/usr/bin/env python3
"""A model of how a GPU hands out attention's blocks: how far from even is the work?

A block costs one unit for each tile of keys that it reads, and OVERHEAD for its start and end.
Blocks are handed out in the order of the grid, each to the place that is free first. The ideal is
all work divided by all places. Nothing here was measured: it compares orders, not kernels.

    dev/attention_dispatch.py [B T NH]
"""
import heapq
import sys

PLACES = 132 * 2  # an H100's multiprocessors, two blocks each
OWN, STREAM, OVERHEAD = 128, 64, 1.0


def cost(first, length):
    return -(-min(first + OWN, length) // STREAM) + OVERHEAD


def finish(costs):
    places = [0.0] * PLACES
    for c in costs:
        heapq.heappush(places, heapq.heappop(places) + c)
    return max(places)


def compare(lengths, heads):
    rows = [[cost(first, T) for first in range(0, T, OWN)][::-1] for T in lengths]
    by_head = [c for _ in range(heads) for row in rows for c in row]
    longest_first = [c for c in sorted((c for row in rows for c in row), reverse=True)
                     for _ in range(heads)]
    ideal = sum(by_head) / PLACES
    return len(by_head), finish(by_head) / ideal, finish(longest_first) / ideal


def main():
    B, T, heads = (int(x) for x in sys.argv[1:4]) if len(sys.argv) > 3 else (4, 1024, 12)
    ragged = [1 + (b * 389) % T for b in range(2 * B)]
    print("                          blocks   by head   longest first     (times the ideal)")
    for name, lengths in ((f"{B} rows of {T}", [T] * B), (f"{2 * B} rows up to {T}", ragged),
                          (f"{8 * B} rows of {T // 8}", [T // 8] * (8 * B))):
        print("%-24s %7d %9.2f %15.2f" % (name, *compare(lengths, heads)))


if __name__ == "__main__":
    main()
