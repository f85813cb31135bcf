"""Writes the golden vectors of the model families: test/golden/families/.

Tiny random checkpoints of awkward sizes, made by transformers: NAME/config.json and
NAME/model.safetensors, in the spelling of transformers 4 or 5 and in each storage type. And what
transformers computes from the files, read back, in float64: NAME.safetensors with

    token, row_start          rows of 300, 1, 37 and 64 tokens, each a sequence of its own
    row, target               the tokens with a loss, and what they are to predict
    logp, entropy             of these; dlogp, dentropy: the coefficients of the objective
    logit_token, logits       logits of a few tokens
    attention_entropy         [L,NH] of the third row, the mean over its positions
    gradient                  [tensors,4] of sum dlogp logp + dentropy H: each tensor's norm and its
                              products with cos(0.7 i + k), k = 0, 1, 2, i the element's index
    prompt_start, prompt      greedy generation: prompts, and the 200 tokens after each,
    greedy                    where no choice was closer than MARGIN

The order of `gradient` is that of the names in the file, sorted. Integers are stored as float32.
RMSNorm is replaced by itself in float64: transformers rounds it to float32.

    pip install -r dev/ref/requirements.txt
    python dev/ref/make_families.py
"""
import json
import os
import shutil

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "families")
LENGTHS = [300, 1, 37, 64]
PROMPTS = [1, 9, 40]
NEW_TOKENS = 200
LOGITS = [0, 1, 2, 63, 64, 255, 299, 300, 301, 337, 338, 401]
UNSCORED = 3      # every third token of a row carries no loss
MARGIN = 1e-3     # between the best logit and the second
CONTEXT = 320
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
          "original_max_position_embeddings": 64}

# name: type, spelling of transformers 4 or 5, storage, and sizes
CASES = {
    "gpt2": ("gpt2", 5, torch.float16, dict(
        vocab_size=53, n_embd=20, n_head=4, n_inner=28, n_layer=2, n_positions=CONTEXT,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "llama": ("llama", 5, torch.float32, dict(
        vocab_size=61, hidden_size=21, num_attention_heads=3, num_key_value_heads=1, head_dim=8,
        intermediate_size=28, num_hidden_layers=2,
        rope_parameters={"rope_theta": 500.0, **LLAMA3})),
    "llama_biases": ("llama", 4, torch.bfloat16, dict(
        vocab_size=64, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=6,
        intermediate_size=37, num_hidden_layers=3, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, rope_parameters={"rope_theta": 10000.0, **LLAMA3})),
    "llama_old": ("llama", 4, torch.float16, dict(
        vocab_size=37, hidden_size=24, num_attention_heads=4, intermediate_size=40,
        num_hidden_layers=2, rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.5})),
    "mistral": ("mistral", 4, torch.bfloat16, dict(
        vocab_size=83, hidden_size=28, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
        intermediate_size=31, num_hidden_layers=2, sliding_window=None,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"})),
    "qwen2": ("qwen2", 4, torch.bfloat16, dict(
        vocab_size=71, hidden_size=24, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=33, num_hidden_layers=3, tie_word_embeddings=True, max_window_layers=3,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"})),
    "qwen2_untied": ("qwen2", 5, torch.float32, dict(
        vocab_size=47, hidden_size=18, num_attention_heads=3, num_key_value_heads=1,
        intermediate_size=29, num_hidden_layers=2, use_sliding_window=True, max_window_layers=2,
        sliding_window=16, rope_parameters={"rope_theta": 1000.0, "rope_type": "default"})),
    "qwen3": ("qwen3", 5, torch.float16, dict(
        vocab_size=59, hidden_size=20, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        intermediate_size=28, num_hidden_layers=2, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"})),
    "qwen3_biases": ("qwen3", 4, torch.float32, dict(
        vocab_size=67, hidden_size=14, num_attention_heads=3, num_key_value_heads=3, head_dim=16,
        intermediate_size=21, num_hidden_layers=2, attention_bias=True,
        rope_parameters={"rope_theta": 1e4, "rope_type": "default"})),
    "qwen3_wide": ("qwen3", 4, torch.bfloat16, dict(
        vocab_size=96, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
        intermediate_size=24, num_hidden_layers=1, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"})),
}


def exact_norms(model):
    """RMSNorm without the rounding to float32."""
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) +
                                              self.variance_epsilon))
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            type(module).forward = forward


def write_checkpoint(directory, kind, spelling, storage, sizes, seed):
    torch.manual_seed(seed)
    if kind != "gpt2":
        sizes = dict(sizes, max_position_embeddings=CONTEXT)
    config = AutoConfig.for_model(kind, **sizes, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than at initialisation, so that all that is not linear shows.
            if "norm" in name or ".ln_" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.25)
            elif parameter.dim() == 1:
                parameter.normal_(0.0, 0.3)
            else:
                wide = "embed_tokens" in name or "wte" in name or "lm_head" in name
                parameter.normal_(0.0, 0.7 if wide else 0.3)
    model.to(storage).save_pretrained(directory)
    os.remove(os.path.join(directory, "generation_config.json"))
    os.chmod(os.path.join(directory, "model.safetensors"), 0o644)  # the library makes it private
    path = os.path.join(directory, "config.json")
    with open(path) as file:
        keys = json.load(file)
    keys.pop("transformers_version")
    if spelling == 4:
        rope = keys.pop("rope_parameters")
        keys["rope_theta"] = rope.pop("rope_theta")
        keys["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        keys["torch_dtype"] = keys.pop("dtype")
        keys.pop("layer_types", None)
        if "head_dim" not in sizes:
            keys.pop("head_dim", None)
        if kind == "llama" and "num_key_value_heads" not in sizes:
            keys.pop("num_key_value_heads")
            keys["rope_scaling"]["type"] = keys["rope_scaling"].pop("rope_type")
            keys["pretraining_tp"] = 2
    with open(path, "w") as file:
        json.dump(keys, file, indent=1, sort_keys=True)
        file.write("\n")


def read_checkpoint(directory, attention):
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation=attention, output_loading_info=True)
    assert not any(report.values()), report
    exact_norms(model)
    return model.eval()


def entropy_of(logp):
    return -(logp.exp() * logp).sum(-1)


def run_rows(model, generator):
    out = {key: [] for key in ("token", "row", "target", "dlogp", "dentropy", "logp", "entropy")}
    logits, objective, start = [], 0.0, 0
    for length in LENGTHS:
        token = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        z = model(token[None]).logits[0]
        logits.append(z.detach())
        logp = torch.log_softmax(z, -1)
        scored = [t for t in range(length - 1) if t % UNSCORED != 0]
        target = token[1:][scored]
        picked, entropy = logp[scored, target], entropy_of(logp[scored])
        dlogp = torch.randn(len(scored), generator=generator)
        dentropy = torch.randn(len(scored), generator=generator)
        objective = objective + (dlogp.double() * picked + dentropy.double() * entropy).sum()
        for key, value in (("token", token), ("row", torch.tensor(scored, dtype=int) + start),
                           ("target", target), ("dlogp", dlogp), ("dentropy", dentropy),
                           ("logp", picked), ("entropy", entropy)):
            out[key].append(value)
        start += length
    objective.backward()
    arrays = {key: torch.cat(value) for key, value in out.items()}
    arrays["row_start"] = torch.tensor([0] + list(np.cumsum(LENGTHS)))
    arrays["logit_token"] = torch.tensor(LOGITS)
    arrays["logits"] = torch.cat(logits)[LOGITS]
    projections = []
    for _, parameter in sorted(model.named_parameters()):
        g = parameter.grad.reshape(-1)
        wave = torch.arange(len(g), dtype=torch.float64) * 0.7
        projections.append(torch.stack([g.norm()] + [(g * torch.cos(wave + k)).sum()
                                                     for k in range(3)]))
    arrays["gradient"] = torch.stack(projections)
    return arrays


@torch.no_grad()
def attention_entropy(directory, token):
    attentions = read_checkpoint(directory, "eager")(token[None], output_attentions=True).attentions
    return torch.stack([entropy_of(torch.log(a[0].double().clamp_min(1e-300))).mean(-1)
                        for a in attentions])


@torch.no_grad()
def run_greedy(model, generator):
    """None where a choice was too close to be the same everywhere."""
    prompts, greedy = [], []
    for length in PROMPTS:
        token = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        prompts.append(token)
        for _ in range(NEW_TOKENS):
            z, order = model(token[None]).logits[0, -1].topk(2)
            if z[0] - z[1] < MARGIN:
                return None
            token = torch.cat([token, order[:1]])
        greedy.append(token[length:])
    return {"prompt": torch.cat(prompts), "prompt_start": torch.tensor([0, *np.cumsum(PROMPTS)]),
            "greedy": torch.stack(greedy)}


def make(name, kind, spelling, storage, sizes):
    directory = os.path.join(ROOT, name)
    for seed in range(100):
        write_checkpoint(directory, kind, spelling, storage, sizes, seed)
        model = read_checkpoint(directory, "sdpa")
        generator = torch.Generator().manual_seed(seed)
        greedy = run_greedy(model, generator)
        if greedy is not None:
            break
    arrays = {**greedy, **run_rows(model, generator)}
    third = arrays["row_start"][2:4]
    arrays["attention_entropy"] = attention_entropy(directory, arrays["token"][third[0]:third[1]])
    arrays = {key: np.ascontiguousarray(value.detach().numpy().astype(np.float32))
              for key, value in arrays.items()}
    path = os.path.join(ROOT, name + ".safetensors")
    save_file(arrays, path)
    os.chmod(path, 0o644)
    weights = os.path.getsize(os.path.join(directory, "model.safetensors"))
    varied = len(np.unique(arrays["greedy"]))
    print(f"{name}: seed {seed}, {weights} + {os.path.getsize(path)} bytes, "
          f"{varied} different greedy tokens", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    shutil.rmtree(ROOT, ignore_errors=True)
    for case, description in CASES.items():
        make(case, *description)
