"""Checks that transformers reads the directories that ./train writes, and that ./train reads those
that transformers writes, element types, shards and files beside the weights included.

    python dev/ref/check_directories.py [./train]

A small GPT-2 is trained for a moment, saved by transformers in several ways, given to ./train as
--model, saved again without a step, and compared: tensors bit for bit, names, element types, files
byte for byte, logits; after a step of training, transformers' log-probabilities of the exported
directory with those of --score. Prints a line for each way, and ends with 1 where something
differs. Needs dev/ref/requirements.txt."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, GPT2Model

train = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "./train")
QUIET = ["--quiet", "--eval-every", "0", "--threads", "2", "--prompts", "4", "--group", "4"]
TOKENIZER = ["vocab.json", "merges.txt", "tokenizer_config.json"]
failures = 0


def run(*arguments):
    done = subprocess.run([train, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def tensors(directory):
    """name -> tensor, of all safetensors files but the optimizer's; and the number of files."""
    out, files = {}, 0
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".safetensors") or name.startswith("optimizer"):
            continue
        files += 1
        with safe_open(os.path.join(directory, name), "pt") as file:
            for key in file.keys():
                out[key] = file.get_tensor(key)
    return out, files


def check(what, good):
    global failures
    if not good:
        failures += 1
        print("    WRONG:", what)


def logits(directory, ids):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    with torch.no_grad():
        return model, model(ids).logits.float()


def read(directory, name):
    with open(os.path.join(directory, name), "rb") as file:
        return file.read()


def compare(source, exported, prefix=""):
    before, files = tensors(source)
    after, files_after = tensors(exported)
    before = {prefix + name: x for name, x in before.items()}
    check(f"names: {sorted(set(before) ^ set(after))}", set(before) == set(after))
    check("element types", all(before[n].dtype == after[n].dtype for n in before if n in after))
    check("elements", all(torch.equal(before[n], after[n]) for n in before if n in after))
    check(f"{files} files became {files_after}", files == files_after)
    for name in os.listdir(source):
        if "safetensors" not in name:
            check(name, read(source, name) == read(exported, name))
    if files > 1:
        index = "model.safetensors.index.json"
        a, b = json.loads(read(source, index)), json.loads(read(exported, index))
        check("total_size", a["metadata"]["total_size"] == b["metadata"]["total_size"])
        check("weight_map", set(prefix + n for n in a["weight_map"]) == set(b["weight_map"]))


def main():
    os.chdir(tempfile.mkdtemp())
    run("--warm-start", "30", "--steps", "0", "--run", "base", *QUIET)
    base = "base/checkpoints/step_000000"
    ids = torch.arange(12)[None] % 20
    with open("ids.jsonl", "w") as file:
        file.write(json.dumps({"tokens": ids[0].tolist()}) + "\n")
    ways = [("float32", GPT2LMHeadModel, torch.float32, "5GB", None),
            ("bfloat16", GPT2LMHeadModel, torch.bfloat16, "5GB", None),
            ("float16", GPT2LMHeadModel, torch.float16, "5GB", None),
            ("bfloat16 in shards", GPT2LMHeadModel, torch.bfloat16, "100KB", None),
            ("names without a prefix", GPT2Model, torch.bfloat16, "5GB", None),
            ("float32 to bf16", GPT2LMHeadModel, torch.float32, "5GB", "bf16"),
            ("bfloat16 to fp32", GPT2LMHeadModel, torch.bfloat16, "5GB", "fp32")]
    for number, (name, kind, dtype, shard, save) in enumerate(ways):
        print(name)
        source, runs = f"source{number}", f"run{number}"
        kind.from_pretrained(base, dtype=dtype).save_pretrained(source, max_shard_size=shard)
        for file in TOKENIZER:
            shutil.copy(os.path.join(base, file), source)
        with open(os.path.join(source, "chat_template.jinja"), "w") as file:
            file.write("{{ messages }}")
        options = ["--model", source, "--shard-size", shard, "--run", runs, "--lr", "1e-2"]
        if save:
            options += ["--save-dtype", save]
        run("--steps", "0", *options, *QUIET)
        exported = f"{runs}/checkpoints/step_000000"
        model, after = logits(exported, ids)
        if save:
            wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}[save]
            check("element type", model.dtype == wanted)
            _, expected = logits(source, ids)
            check("logits", (after - expected).abs().max() < 0.1)
        else:
            compare(source, exported, "transformer." if kind is GPT2Model else "")
            _, expected = logits(source, ids)
            check("logits", torch.equal(after, expected))
            check("element type", model.dtype == dtype)
        run("--quiet", "--resume", runs, "--steps", "1")
        exported = f"{runs}/checkpoints/step_000001"
        model, _ = logits(exported, ids)
        with torch.no_grad():   # in float32, as --score computes
            logp = model.float()(ids).logits[0, :-1].log_softmax(-1)
        logp = logp[torch.arange(11), ids[0, 1:]]
        scored = torch.tensor(json.loads(run("--model", exported, "--score", "ids.jsonl"))["logp"])
        print(f"    largest difference of a log-probability {(logp - scored).abs().max():.1e}")
        check("log-probabilities", (logp - scored).abs().max() < 1e-4)
    print(f"{failures} wrong" if failures else "all as they should be")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
