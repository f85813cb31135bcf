"""What transformers makes of a model directory: log-probabilities and entropies, as JSON lines.

    pip install torch transformers
    python dev/ref/check_export.py DIR [--dtype float32] [--lengths 2,17,64] [--tokens FILE]

Loads DIR as a user would (AutoModelForCausalLM, AutoTokenizer). For every prompt, in order: a few
sentences, if the directory has a tokenizer; sequences of random ids of the given lengths; or
instead the lines {"tokens": [..]} of FILE. A line out per prompt:

    {"tokens": [ids], "logp": [..], "entropy": [..], "logits": {"argmax", "max", "mean"}}

logp and entropy (nats) belong to tokens 1, 2, ..., as in ./train --score (doc/formats.md), computed
in float64 from the model's logits; "logits" describes the last token's. With --greedy N a last line
{"greedy": [ids]} continues the first prompt, each token the likeliest.
dev/ref/compare_score.py compares this with ./train.
"""
import argparse
import json
import random
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCES = [
    "The river runs down from the hills and meets the sea near a small town.",
    "In 1969 there were 1,234 of them; by 2024 only 56 were left.",
    "def area(width, height):\n    return width * height\n",
    "Grüße aus Köln, où l'été est doux, и до скорой встречи!",
]


def sequences(folder, vocabulary, longest, arguments):
    """Token ids of every prompt."""
    if arguments.tokens:
        with open(arguments.tokens, encoding="utf-8") as file:
            return [json.loads(line)["tokens"] for line in file if line.strip()]
    found = []
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = [tokenizer(text).input_ids[:longest] for text in SENTENCES]
    except (OSError, ValueError, KeyError) as error:
        print(f"check_export.py: no tokenizer in {folder}: random ids only ({error})",
              file=sys.stderr)
    draw = random.Random(1)
    for length in arguments.lengths.split(","):
        found.append([draw.randrange(vocabulary) for _ in range(min(int(length), longest))])
    return [ids for ids in found if len(ids) > 1]


def describe(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    logp = torch.log_softmax(logits[:-1], -1)
    taken = logp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    last = logits[-1]
    return {"tokens": ids, "logp": taken.tolist(), "entropy": entropy.tolist(),
            "logits": {"argmax": int(last.argmax()), "max": float(last.max()),
                       "mean": float(last.mean())}}


def load(folder, dtype):
    """The model, and its context: eager attention, which is the plain definition."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager",
                                                 dtype=getattr(torch, dtype))
    return model.eval(), model.config.max_position_embeddings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--lengths", default="2,17,64", help="of the random sequences")
    parser.add_argument("--tokens", help='file of lines {"tokens": [ids]} instead')
    parser.add_argument("--greedy", type=int, default=0, metavar="N",
                        help="also the next N tokens after the first prompt, each the likeliest")
    arguments = parser.parse_args()
    model, longest = load(arguments.folder, arguments.dtype)
    prompts = sequences(arguments.folder, model.config.vocab_size, longest, arguments)
    for ids in prompts:
        print(json.dumps(describe(model, ids)), flush=True)
    if arguments.greedy:
        ids = list(prompts[0])
        with torch.no_grad():
            for _ in range(min(arguments.greedy, longest - len(ids))):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        print(json.dumps({"greedy": ids[len(prompts[0]):]}))


if __name__ == "__main__":
    main()
