#!/usr/bin/env python3
"""The smallest scorer: half for saying the answer, the rest for saying it in few words.

A line in:   {"id": 7, "prompt": "...", "completion": "...", "answer": "...", "metadata": {...}}
A line out:  {"id": 7, "reward": 0.75}      or null: this one is not to be scored
Answers may come in any order, each flushed at once; what is printed on stderr is shown to the user.
"""
import json
import sys

for line in sys.stdin:
    item = json.loads(line)
    words = item["completion"].split()
    right = item.get("answer") is not None and item["answer"] in item["completion"]
    reward = 0.5 + 0.5 / max(1, len(words)) if right else 0.0
    print(json.dumps({"id": item["id"], "reward": reward}), flush=True)
