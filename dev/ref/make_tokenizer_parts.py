#!/usr/bin/env python3
"""Writes test/golden/tokenizers/parts.jsonl: the parts of tokenizers one by one, and the ids that
Hugging Face's tokenizers library gives.

    pip install tokenizers;  python3 dev/ref/make_tokenizer_parts.py
    python3 dev/ref/make_tokenizer_parts.py --strings 5000 --seed 2     # ./train beside the library

The first line is a tokenizer.json whose tokens are the 256 bytes. Each other line has a name, what
takes the place of the first line's keys, and cases, [text, ids]. Where words are looked at, the
last step puts a space before every word, so that the ids alone show where words begin.

--strings N writes nothing: it makes N other strings for each line, has them encoded by both, and
says where they differ.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile

os.environ["RUST_BACKTRACE"] = "0"

from tokenizers import Tokenizer, pre_tokenizers  # noqa: E402

sys.path.insert(0, os.path.dirname(__file__))
from tokenizer_strings import strings  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "test", "golden", "tokenizers", "parts.jsonl")
TABLES = os.path.join(ROOT, "llmc", "io", "unicode_recent.h")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
            "use_regex": regex}


def model(merges=(), more=(), **keys):
    vocab = {t: i for i, t in enumerate(BYTES)}
    for token in [a + b for a, b in merges] + list(more):
        vocab.setdefault(token, len(vocab))
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab, "merges": [list(m) for m in merges], **keys}


BASE = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": byte_level(), "post_processor": None,
        "decoder": byte_level(), "model": model()}


def split(pattern, behavior="Isolated", invert=False):
    kind = "Regex" if isinstance(pattern, str) else "String"
    return {"type": "Split", "pattern": {kind: pattern if kind == "Regex" else pattern[0]},
            "behavior": behavior, "invert": invert}


def steps(*parts):
    """A pre-tokenizer; every word it gives begins with a space, its own or one more."""
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts, byte_level(True)]}}


def token(content, number, special=False, **flags):
    return {"id": number, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": special, **flags}


# ---- texts: functions of a random generator ------------------------------------------------------

def of(pieces, most=10):
    return lambda r: "".join(r.choice(pieces) for _ in range(r.randrange(1, most + 1)))


def table(name):
    """The characters at the ends of a table's ranges in unicode_recent.h."""
    text = open(TABLES, encoding="utf-8").read().split("} " + name)[1].split("};")[0]
    rows = [[int(x, 16) for x in row.split(",")] for row in re.findall(r"\{(0x[^{}]*)\}", text)]
    return sorted({chr(c) for row in rows for c in row[:2]})


CONTRACTIONS = ["'s", "'S", "'T", "'re", "'LL", "don't", "'\u017f", "x'd"]
SCRIPTS = ["\u6f22", "\u3001", "\u3003", "\u3006", "\u3007", "\u30fb", "\u30fc", "\u309b", "\u3042",
           "\u30a2", "\u03b1", "\u0342", "\u0301", "\u1dc0", "a", "\u0430", "\u0484", "\u2e43",
           "\u1cd0", "\u0964", "\u060c", "\u0640", "\u0627", "\U0001f100", "\u2fb5", " ", "1"]
KINDS_OF_WORD = ["\u00bd", "\u24b6", "\u24ea", "\u00b2", "\u2083", "\u2177", "_", "\u203f",
                 "\u200d", "\u0301", "\u0967", "\U0001f130", "\u00aa", "a",
                 "Z", "9", "g", " ", "-", "\n",
                 "\u0345", "\u00a0", "\u2028", "\x1c", "\x85", "\u180e", "\u200b", "\u20dd"]
PIECES = ["a", "b", "ab", "1", " ", "-", "\u00e9", "\u6f22"]


def words(r):
    return strings(13, ["<x>"], "", seed=r.randrange(1 << 30))[12][:60] + r.choice(
        ["", " ", "\n"]) + r.choice(CONTRACTIONS) + of(SCRIPTS, 4)(r)


def kinds(r, characters=tuple(table("recent") + [c for c in SCRIPTS + KINDS_OF_WORD if c > "~"])):
    c = r.choice(characters)
    return "".join(letter + c for letter in "LNMPSZCulwh")


def marks(r, characters=tuple(table("unordered") + table("recent"))):
    c = [r.choice(characters), r.choice("\u0334\u0345\u05b0\u0301\u0323\u0300\u3099\u1161\u11a8")]
    r.shuffle(c)
    before = r.choice(["a", "e\u0301", "\u00e9", "\u0905", "\uac00", "\u304b", "\u1100", ""])
    return before + "".join(c) + r.choice(["", "\u0327", "\u0301", "\u0338b"])


# ---- the parts -----------------------------------------------------------------------------------

def random_merges(letters, count, seed):
    """Pairs in no order: what is made late may be joined first."""
    r = random.Random(seed)
    tokens, merges = list(letters), []
    while len(merges) < count:
        pair = r.choice(tokens), r.choice(tokens)
        if len(pair[0] + pair[1]) > 9 or pair in merges:
            continue
        merges.append(pair)
        tokens.append(pair[0] + pair[1])
    r.shuffle(merges)
    return merges


BY_HAND = [("b", "c"), ("a", "b"), ("bc", "d"), ("a", "bc")]
LETTERS = r"[^\r\n\p{L}\p{N}]?"
GPT4O = "|".join([
    LETTERS + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll"
    r"|'d)?",
    LETTERS + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll"
    r"|'d)?", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
LLAMA3 = "|".join([r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", LETTERS + r"\p{L}+", r"\p{N}{1,3}",
                   r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
TEKKEN = GPT4O.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
DEEPSEEK = (split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), split(
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"))
KINDS = (r"L\p{L}|N\p{N}|M\p{M}|P\p{P}|S\p{S}|Z\s|C\p{C}|u\p{Lu}|l\p{Ll}|w\w|h\p{Han}")
FLAGS = ["lstrip", "rstrip", "single_word", "normalized"]


def flag_tokens():
    """A token for each set of flags, and tokens of spaces."""
    out = []
    for bits in range(32):
        on = {f: True for k, f in enumerate(FLAGS) if bits >> k & 1}
        out.append(token("<\u00e9%02d>" % bits if bits % 3 else "w%02d" % bits,
                         256 + len(out), special=bits >= 16, **on))
    for content, flags in [("  ", {"lstrip": True}), ("   ", {}), ("\n", {"lstrip": True}),
                           ("\t", {"rstrip": True}), ("\n\n", {"lstrip": True, "rstrip": True}),
                           ("the cat", {}), ("cat", {"single_word": True}), ("e\u0301", {}),
                           ("\u00e9\u0301", {"normalized": True})]:
        out.append(token(content, 256 + len(out), **flags))
    return out


def parts():
    """name: what changes, texts, how many of them are stored."""
    out = {}
    for behavior in BEHAVIORS:
        for invert in (False, True):
            name = behavior + (" inverted" if invert else "")
            out[name] = steps(split("[ab]+|1", behavior, invert)), of(PIECES), 25
            out["text " + name] = steps(split([" "], behavior, invert)), of(PIECES), 15
            out["empty " + name] = steps(split("a*", behavior, invert)), of(PIECES), 20
    for pattern in ["(?=b)", r"\b", r"\B", "|a", "(?<=a)", "x*", "(?=\u6f22)|b", "$", "^",
                    "(?=a)|(?<=a)"]:
        out["empty " + pattern] = steps(split(pattern, "MergedWithNext")), of(
            [*PIECES, "\n", "_"]), 20
    for pattern in [r"\p{Han}+", r"\P{Han}", r"\p{^Han}", r"\p{Hiragana}", r"\p{Greek}+",
                    r"\p{Arabic}", r"\p{Devanagari}", r"\p{Common}", r"[\p{Han}\p{Katakana}]+",
                    r"[^\p{Greek}]", r"\p{Inherited}", r"\p{Cyrillic}", r"\p{Any}", r"\p{Lo}"]:
        out["script " + pattern] = steps(split(pattern, "Removed")), of(SCRIPTS, 12), 20
    for pattern in [r"\w", r"\W", r"[\w]", r"[^\w]", r"\d", r"\D", r"\s", r"\S", r"[\s]", r"[^\s]",
                    r"\h", r"\H", r"\b", r"\B", r"[\h]", r"\u0061", r"[[:space:]]", r"[[:digit:]]",
                    r"[[:xdigit:]]", r"\p{L}\p{M}*", ".", r"(?m:.a)", r"\R", r"\x{e9}"]:
        out["escape " + pattern] = steps(split(pattern)), of(KINDS_OF_WORD, 12), 20
    for pattern in ["a{,2}", "a{2}", "a{1,}", "a{1,2}?", "a{,}", "b{x", "(?i:AB)", "(?i)AB1",
                    "a++b", "a?+b", "(?>a|ab)1", "(?x: a b )", "(?-i:a)b", "a(?#note)b", "(a)\\1"]:
        pieces = of([*PIECES, "{", "}", "x", "A", ","], 12)
        out["form " + pattern] = steps(split(pattern)), pieces, 20
    for name, pre in {"gpt2": [byte_level(regex=True)], "llama3": [split(LLAMA3), byte_level()],
                      "qwen2": [split(LLAMA3.replace("{1,3}", "")), byte_level()],
                      "gpt4o": [split(GPT4O), byte_level()],
                      "tekken": [split(TEKKEN), byte_level()],
                      "removed": [split(LLAMA3, "Removed", True), byte_level()],
                      "deepseek": [*DEEPSEEK, byte_level()],
                      "digits": [{"type": "Digits", "individual_digits": True}],
                      "numbers": [{"type": "Digits", "individual_digits": False}],
                      }.items():
        pre = [p for p in pre if p != byte_level()]
        if name == "gpt2":
            pre = [split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
                         r"|\s+")]
        out["family " + name] = steps(*pre), words, 40
    out["kinds"] = steps(split(KINDS, "Removed")), kinds, 4000
    out["marks"] = {"normalizer": {"type": "NFC"}}, marks, 500
    merges = BY_HAND + random_merges("abcd", 90, seed=3)
    out["merges by hand"] = {"model": model(BY_HAND)}, of("abcd", 12), 40
    out["merges"] = {"model": model(merges)}, of("abcde", 60), 150
    out["merges passed over"] = {"model": model(
        BY_HAND, ["dcba", "cd", "abcd", "d\u0120", "\u0120a"], ignore_merges=True)}, of(
            ["dcba", "cd", "abcd", " a", "d ", "b"], 4), 60
    out["added"] = {"added_tokens": flag_tokens(), "normalizer": {"type": "NFC"}}, of(
        [t["content"] for t in flag_tokens()] + [" ", "  ", "\n", "\u3000", "a", "e", "\u0301", "_",
                                                 ".", "\u200d", "\U0001145e"] * 3, 9), 400
    return out


def texts_of(make, count, seed):
    r = random.Random(seed)
    return [make(r) for _ in range(count)]


def ids_of(library, text):
    """None: the library itself fails (spaces that several added tokens take)."""
    try:
        return library.encode(text).ids
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":
            raise
        return None


def write():
    with open(OUT, "w", encoding="utf-8") as file:
        file.write(json.dumps(BASE, separators=(",", ":")) + "\n")
        for name, (change, make, count) in parts().items():
            library = Tokenizer.from_str(json.dumps({**BASE, **change}))
            texts = list(dict.fromkeys(texts_of(make, count, 7)))
            cases = [[t, ids] for t in texts if (ids := ids_of(library, t)) is not None]
            line = {"name": name, "change": change, "cases": cases}
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def compare(count, seed, only):
    for name, (change, make, _) in parts().items():
        if only not in name:
            continue
        texts = texts_of(make, count, seed)
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
                json.dump({**BASE, **change}, file)
            with open(os.path.join(folder, "texts.jsonl"), "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": t}) + "\n" for t in texts)
            run = subprocess.run([os.path.join(ROOT, "train"), "--model", folder, "--tokenize",
                                  os.path.join(folder, "texts.jsonl")], capture_output=True,
                                 text=True)
        library = Tokenizer.from_str(json.dumps({**BASE, **change}))
        if run.returncode:
            print(f"{name}: {run.stderr.strip()}")
            continue
        ours = [json.loads(line)["ids"] for line in run.stdout.split("\n") if line]
        theirs = [ids_of(library, t) for t in texts]
        wrong = sorted((t, a, b) for t, a, b in zip(texts, theirs, ours) if a not in (b, None))
        print(f"{name}: {len(wrong)} of {count - theirs.count(None)} differ")
        for t, a, b in sorted(wrong, key=lambda w: len(w[0]))[:3]:
            print("   ", ascii(t), "\n      theirs", ascii(library.decode(a)), a[:16],
                  "\n      ours  ", ascii(library.decode(b)), b[:16])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strings", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    a = parser.parse_args()
    if a.strings:
        compare(a.strings, a.seed, a.only)
    else:
        write()


main()
