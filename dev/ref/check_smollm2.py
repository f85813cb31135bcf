"""dev/data/smollm2.py on a tiny random model: exit code 0 right, 1 wrong, 77 a package is missing.

    pip install gguf numpy [torch transformers accelerate]
    python dev/ref/check_smollm2.py

Writes a GGUF file of awkward sizes with the package gguf (Q4_1, Q8_0 and float32 tensors), has it
converted, reads the directory with a reader of its own, and compares

    the order of q's and k's rows: scores of attention by llama.cpp's rotation of neighbours on the
        file's rows, and by the hub's rotation of halves on the directory's, must be equal
    every other tensor, as float32 and rounded to bfloat16
    the token ids of a text by hand
    where transformers is there: the logits of its own reading of the file (gguf_file=)
"""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
except ImportError as missing:
    print(f"check_smollm2.py: {missing}")
    sys.exit(77)

LAYERS, C, HEADS, KV_HEADS, F, HS = 2, 96, 3, 1, 64, 32
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "1", "2", "Ġ", "ab",
          "Ġab", "12"]
MERGES = ["a b", "Ġ ab", "1 2"]
TEXT, IDS = "ab ab12<|im_end|>c", [9, 10, 6, 7, 2, 5]   # digits stand alone: never 12
NAMES = {"attn_q": ("self_attn.q_proj", (HEADS * HS, C)),
         "attn_k": ("self_attn.k_proj", (KV_HEADS * HS, C)),
         "attn_v": ("self_attn.v_proj", (KV_HEADS * HS, C)),
         "attn_output": ("self_attn.o_proj", (C, HEADS * HS)),
         "ffn_gate": ("mlp.gate_proj", (F, C)), "ffn_up": ("mlp.up_proj", (F, C)),
         "ffn_down": ("mlp.down_proj", (C, F)), "attn_norm": ("input_layernorm", (C,)),
         "ffn_norm": ("post_attention_layernorm", (C,))}


def draw_tensors():
    """GGUF name: (hub's name, values, type in the file)."""
    kinds = gguf.GGMLQuantizationType
    draw = np.random.default_rng(1)
    rows = [("token_embd.weight", "model.embed_tokens.weight", (len(TOKENS), C), kinds.Q8_0),
            ("output_norm.weight", "model.norm.weight", (C,), kinds.F32)]
    for layer in range(LAYERS):
        for name, (hub, shape) in NAMES.items():
            rows.append((f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{hub}.weight", shape,
                         kinds.Q4_1 if len(shape) == 2 else kinds.F32))
    found = {}
    for name, hub, shape, kind in rows:
        values = draw.normal(size=shape).astype(np.float32) * (0.2 if len(shape) == 2 else 1)
        packed = gguf.quantize(values, kind)
        found[name] = (hub, gguf.dequantize(packed, kind), packed, kind)
    return found


def write_gguf(path, tensors):
    out = gguf.GGUFWriter(path, "llama")
    for call, value in (
            (out.add_block_count, LAYERS), (out.add_context_length, 128),
            (out.add_embedding_length, C), (out.add_feed_forward_length, F),
            (out.add_head_count, HEADS), (out.add_head_count_kv, KV_HEADS),
            (out.add_rope_freq_base, 10000.0), (out.add_layer_norm_rms_eps, 1e-5),
            (out.add_rope_dimension_count, HS), (out.add_vocab_size, len(TOKENS)),
            (out.add_tokenizer_model, "gpt2"), (out.add_tokenizer_pre, "smollm"),
            (out.add_token_list, TOKENS), (out.add_token_types, [3] * 3 + [1] * (len(TOKENS) - 3)),
            (out.add_token_merges, MERGES), (out.add_bos_token_id, 1), (out.add_eos_token_id, 2),
            (out.add_unk_token_id, 0), (out.add_pad_token_id, 2),
            (out.add_chat_template, "{{ messages[0]['content'] }}")):
        call(value)
    for name, (_, _, packed, kind) in tensors.items():
        out.add_tensor(name, packed, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def read_safetensors(path):
    """Every tensor as float32."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    found = {}
    for name, row in header.items():
        if name == "__metadata__":
            continue
        bits = data[slice(*row["data_offsets"])]
        found[name] = (np.frombuffer(bits, "<f4") if row["dtype"] == "F32" else
                       (np.frombuffer(bits, "<u2").astype(np.uint32) << 16).view(np.float32)
                       ).reshape(row["shape"])
    return found


def rotated(x, position, neighbours):
    """x [heads, HS] turned by its position: pairs of neighbours, or of halves."""
    angle = position * 10000.0 ** (-np.arange(HS // 2) * 2 / HS)
    first, second = (x[:, 0::2], x[:, 1::2]) if neighbours else np.split(x, 2, axis=1)
    pairs = [first * np.cos(angle) - second * np.sin(angle),
             first * np.sin(angle) + second * np.cos(angle)]
    return np.concatenate(pairs, axis=1)   # the order within does not matter to a dot product


def scores(q, k, neighbours):
    """Scores of attention of a query at position 7 on keys at 0 to 7, of each head."""
    x = np.random.default_rng(2).normal(size=(8, C))
    query = rotated((q.astype(np.float64) @ x[7]).reshape(HEADS, HS), 7, neighbours)
    keys = [rotated((k.astype(np.float64) @ x[t]).reshape(KV_HEADS, HS), t, neighbours)
            for t in range(8)]
    return np.array([[query[h] @ key[h * KV_HEADS // HEADS] for h in range(HEADS)] for key in keys])


def check_weights(folder, tensors, narrow):
    ours = read_safetensors(f"{folder}/model.safetensors")
    assert sorted(ours) == sorted(hub for hub, *_ in tensors.values())
    for name, (hub, values, _, _) in tensors.items():
        if "attn_q" in name or "attn_k" in name:
            continue
        if narrow:   # half a unit in the last of 8 places
            assert np.all(np.abs(ours[hub] - values) <= np.abs(values) * 2.0 ** -8), hub
        else:
            assert np.array_equal(ours[hub], values), hub
    for layer in range(0 if narrow else LAYERS):
        q, k = (tensors[f"blk.{layer}.attn_{which}.weight"] for which in "qk")
        assert not np.array_equal(q[1], ours[q[0]])
        theirs = scores(q[1], k[1], True)
        error = np.abs(scores(ours[q[0]], ours[k[0]], False) - theirs).max()
        assert error < 1e-12 * np.abs(theirs).max(), f"layer {layer}: scores differ by {error}"


def check_texts(folder):
    config = json.load(open(f"{folder}/config.json", encoding="utf-8"))
    for key, value in (("hidden_size", C), ("num_key_value_heads", KV_HEADS),
                       ("rms_norm_eps", 1e-5), ("rope_theta", 10000.0),
                       ("tie_word_embeddings", True), ("eos_token_id", 2)):
        assert config[key] == value, key
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"]
    if importlib.util.find_spec("tokenizers"):
        import tokenizers
        tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        assert tokenizer.encode(TEXT).ids == IDS, tokenizer.encode(TEXT).ids
        assert tokenizer.decode(IDS, skip_special_tokens=False) == TEXT


def check_logits(folder, path):
    if not all(map(importlib.util.find_spec, ("torch", "transformers", "accelerate"))):
        print("check_smollm2.py: no torch, transformers and accelerate: logits not compared")
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    theirs = AutoModelForCausalLM.from_pretrained(
        os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(TEXT).input_ids])
    assert ids.tolist() == [IDS], ids
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def main():
    tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../data/smollm2.py")
    with tempfile.TemporaryDirectory() as place:
        tensors = draw_tensors()
        path = f"{place}/tiny.gguf"
        write_gguf(path, tensors)
        for dtype in ("float32", "bfloat16"):
            folder = f"{place}/{dtype}"
            command = [sys.executable, tool, folder, "--gguf", path, "--dtype", dtype]
            subprocess.run(command, check=True)
            check_weights(folder, tensors, dtype == "bfloat16")
            check_texts(folder)
            # what is there already is not touched
            assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 2
        check_logits(f"{place}/float32", path)
        assert sorted(os.listdir(place)) == ["bfloat16", "float32", "tiny.gguf"]


if __name__ == "__main__":
    main()
