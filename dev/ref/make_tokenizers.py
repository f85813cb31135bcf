#!/usr/bin/env python3
"""Writes test/golden/tokenizers: small BPE tokenizers, trained on this repository's pages, and the
ids that Hugging Face's tokenizers library gives some hundred strings.

    pip install tokenizers;  python3 dev/ref/make_tokenizers.py

Each folder has a tokenizer.json (or GPT-2's files) and cases.jsonl: {"text", "ids"} a line, with
"back" where the ids do not decode to the text itself. Configurations are those of GPT-2, Llama-3,
Qwen2 and SmolLM2, and some that nobody would want.
"""
import glob
import json
import os
import sys
import unicodedata

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

sys.path.insert(0, os.path.dirname(__file__))
from tokenizer_strings import strings  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "test", "golden", "tokenizers")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
          r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def prose():
    return "\n".join(open(f, encoding="utf-8").read()
                     for f in sorted(glob.glob(os.path.join(ROOT, "doc", "*.md"))))


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
            "use_regex": regex}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def token(content, special=True, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special, **flags}


def template(name, number, end=None):
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {name: {"id": name, "ids": [number], "tokens": [name]}}
    if end:
        pieces.append({"SpecialToken": {"id": end[0], "type_id": 0}})
        tokens[end[0]] = {"id": end[0], "ids": [end[1]], "tokens": [end[0]]}
    return {"type": "Sequence", "processors": [byte_level(), {
        "type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}]}


CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONFIGURATIONS = {
    "gpt2": dict(size=420, pre=byte_level(), added=[token("<|endoftext|>")]),
    "llama3": dict(size=480, pre=sequence(split({"Regex": LLAMA3}), byte_level(regex=False)),
                   pairs=True, model={"ignore_merges": True}, begin="<|begin_of_text|>",
                   added=[token(t) for t in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
                                             "<|start_header_id|>", "<|end_header_id|>")]),
    "qwen2": dict(size=400, pre=sequence(split({"Regex": LLAMA3.replace("{1,3}", "")}),
                                         byte_level(regex=False)),
                  normalizer={"type": "NFC"},
                  added=[token(t) for t in CHAT] + [token("<tool_call>", special=False)]),
    "smollm2": dict(size=440, pre=sequence({"type": "Digits", "individual_digits": True},
                                           byte_level()),
                    added=[token(t) for t in CHAT], first=True, without=[4, 6, 0x13, 0xF1]),
    "added": dict(size=380, pre=byte_level(prefix=True), begin="<s>", end="</s>",
                  normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]},
                  added=[token("<s>", rstrip=True), token("</s>", lstrip=True),
                         token("<mask>", lstrip=True, rstrip=True),
                         token("the", special=False, single_word=True),
                         token("the cat", special=False), token("  ", special=False),
                         token("e\u0301\u0301", special=False, normalized=True),
                         token("<\u6f22>", special=False, normalized=True, rstrip=True),
                         token("<\u6f22\u5b57>", single_word=True)]),
    "splits": dict(size=360, added=[token("<s>")], pre=sequence(
        split({"String": "--"}, "Removed"), split({"Regex": r"\s"}, "MergedWithPrevious"),
        {"type": "Digits", "individual_digits": False},
        split({"Regex": r"[\w]+|(?=\p{Sc})"}, "MergedWithNext"), byte_level(regex=False),
        split({"Regex": r"[a-z]{2}"}, "Contiguous", True))),
    "unknown": dict(size=340, pre=byte_level(regex=False), added=[token("<unk>")], first=True,
                    without=[ord("x"), ord("7"), 0xC3, 0xE2],
                    model={"unk_token": "<unk>", "fuse_unk": True}),
}


def train(c):
    """The model's own tokens and merges."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    special = [a["content"] for a in c["added"]] if c.get("first") else []
    t.train_from_iterator([prose(), "e\u0301 caf\u00e9 \u6f22\u5b57 \u6f22\u5b57 \U0001f600" * 50],
                          trainers.BpeTrainer(vocab_size=c["size"], show_progress=False,
                                              special_tokens=special,
                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(t.to_str())["model"]
    return model["vocab"], [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]


def spelled(byte):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        chr(byte))[0][0] if byte < 128 else {0xC3: "\u00c3", 0xE2: "\u00e2", 0xF1: "\u00f1"}[byte]


def drop(vocab, merges, bytes_gone):
    """The vocabulary without some bytes, numbered anew."""
    gone = {spelled(b) for b in bytes_gone}
    order = [t for t in sorted(vocab, key=vocab.get) if t.startswith("<") or not gone & set(t)]
    merges = [m for m in merges if not gone & set(m[0] + m[1])]
    return {t: i for i, t in enumerate(order)}, merges


def build(c):
    vocab, merges = train(c)
    if "without" in c:
        vocab, merges = drop(vocab, merges, c["without"])
    added, post = [], byte_level()
    for a in c["added"]:
        after = max([len(vocab)] + [b["id"] + 1 for b in added])
        added.append({"id": vocab.get(a["content"], after), **a})
    number = {a["content"]: a["id"] for a in added}
    if "begin" in c:
        post = template(c["begin"], number[c["begin"]],
                        (c["end"], number[c["end"]]) if "end" in c else None)
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": c.get("normalizer"), "pre_tokenizer": c["pre"], "post_processor": post,
            "decoder": byte_level(),
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      **c.get("model", {}), "vocab": vocab,
                      "merges": merges if c.get("pairs") else [" ".join(m) for m in merges]}}


def write(path, text):
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


def write_files(folder, name, data):
    os.makedirs(folder, exist_ok=True)
    compact = dict(ensure_ascii=False, separators=(",", ":"))
    if name == "gpt2":   # as GPT-2 was published
        vocab = dict(data["model"]["vocab"])
        vocab.update({a["content"]: a["id"] for a in data["added_tokens"]})
        write(os.path.join(folder, "vocab.json"), json.dumps(vocab, **compact))
        write(os.path.join(folder, "merges.txt"),
              "\n".join(["#version: 0.2", *data["model"]["merges"], ""]))
    else:
        write(os.path.join(folder, "tokenizer.json"), json.dumps(data, **compact))


def texts_of(specials):
    some = [t for t in strings(600, specials, prose(), seed=7) if len(t) < 90][:150]
    return some + ["x" * 700, " " * 300 + "a", "the cat  the theater <mask> \n <mask>the  cat",
                   "<s> <s>  x  </s></s> y", "e\u0301\u0301 \u00e9\u0301",
                   "<\u6f22>  <\u6f22\u5b57>a <\u6f22\u5b57>", "a--b --- $5 1234 ab-cd",
                   "xx77x7 \u00e9\u20ac<unk>"]


def came_back(name, text, data):
    """What decoding the ids should give, by other means than the library's decoder."""
    if data["normalizer"]:
        text = unicodedata.normalize("NFC", text)
    if name == "smollm2":
        gone = bytes(CONFIGURATIONS[name]["without"])
        return bytes(b for b in text.encode() if b not in gone).decode(errors="replace")
    return None if name in ("added", "splits", "unknown") else text


def main():
    for name, c in CONFIGURATIONS.items():
        data = build(c)
        library = Tokenizer.from_str(json.dumps(data))
        folder = os.path.join(OUT, name)
        write_files(folder, name, data)
        lines = []
        for text in texts_of([a["content"] for a in data["added_tokens"]]):
            case = {"text": text, "ids": library.encode(text).ids}
            back = came_back(name, text, data)
            if back is None:
                back = library.decode(library.encode(text, add_special_tokens=False).ids,
                                      skip_special_tokens=False)
            if back != text:
                case["back"] = back
            lines.append(json.dumps(case, separators=(",", ":")))
        write(os.path.join(folder, "cases.jsonl"), "\n".join(lines) + "\n")


main()
