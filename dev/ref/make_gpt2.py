"""Writes the golden vectors of the transformer: test/golden/gpt2 and gpt2_expected.safetensors.

An independent implementation (Hugging Face's GPT2LMHeadModel, float64 on the CPU) of an oddly
shaped model on three rows of different length, one at a time and without padding. The objective is

    J = sum over tokens with loss of  a_t log p(y_t) + b_t H_t        a_t, b_t: fixed random signs

so that both coefficients the head can receive are in every gradient. Integers are stored as
float32, which holds them exactly. `--read` checks that from_pretrained reads what train writes.

    pip install -r dev/ref/requirements.txt
    python dev/ref/make_gpt2.py                       write the vectors
    python dev/ref/make_gpt2.py --read DIR            print a checkpoint's logp of fixed tokens
"""
import argparse
import os

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel

GOLDEN = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden")
LENGTHS = [24, 7, 14]
UNSCORED = 3  # every third token of a row carries no loss, as prompts do not


def build_model():
    torch.manual_seed(20240817)
    config = GPT2Config(
        vocab_size=61, n_positions=24, n_embd=36, n_layer=2, n_head=3, n_inner=100,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=60, eos_token_id=60,
        attn_implementation="eager")
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than at initialisation, so that attention and GELU are far from linear.
            if ".ln_" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.2)
            elif parameter.dim() == 1:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.normal_(0.0, 0.6 if "wte" in name else 0.25)
    return model.eval()


def entropy_of(probabilities):
    return -(torch.xlogy(probabilities, probabilities)).sum(-1)


def run_rows(model):
    """Forward and backward over the rows; returns the arrays of the packed batch."""
    generator = torch.Generator().manual_seed(7)
    out = {key: [] for key in ("token", "position", "row", "target", "dlogp", "dentropy", "hidden",
                               "logp", "entropy", "attention_entropy")}
    start, objective, cross_entropy = 0, 0.0, 0.0
    for length in LENGTHS:
        token = torch.randint(0, 61, (length,), generator=generator)
        result = model.transformer(token[None], output_attentions=True)
        hidden = result.last_hidden_state[0]
        logp = torch.log_softmax(model.lm_head(hidden), -1)
        scored = [t for t in range(length - 1) if t % UNSCORED != 0]
        target = token[1:][scored]
        picked = logp[scored, target]
        entropy = entropy_of(logp[scored].exp())
        dlogp = torch.randn(len(scored), generator=generator)
        dentropy = torch.randn(len(scored), generator=generator)
        objective = objective + (dlogp.double() * picked + dentropy.double() * entropy).sum()
        cross_entropy -= picked.sum().item()
        out["token"].append(token)
        out["position"].append(torch.arange(length))
        out["row"].append(torch.tensor(scored) + start)
        for key, value in (("target", target), ("dlogp", dlogp), ("dentropy", dentropy),
                           ("hidden", hidden), ("logp", picked), ("entropy", entropy)):
            out[key].append(value)
        # [layers, heads, positions]
        out["attention_entropy"].append(torch.stack([entropy_of(a[0]) for a in result.attentions]))
        start += length
    objective.backward()
    arrays = {key: torch.cat(value, -1 if key == "attention_entropy" else 0)
              for key, value in out.items()}
    arrays["row_start"] = torch.tensor([0] + list(np.cumsum(LENGTHS)))
    arrays["objective"] = objective.reshape(1)
    arrays["cross_entropy"] = torch.tensor([cross_entropy / len(arrays["row"])])
    return arrays


def write_golden():
    model = build_model()
    directory = os.path.join(GOLDEN, "gpt2")
    model.save_pretrained(directory)
    os.remove(os.path.join(directory, "generation_config.json"))
    model = model.double()
    arrays = run_rows(model)
    for name, parameter in model.named_parameters():
        arrays["grad." + name] = parameter.grad
    arrays = {key: np.ascontiguousarray(value.detach().numpy().astype(np.float32))
              for key, value in arrays.items()}
    expected = os.path.join(GOLDEN, "gpt2_expected.safetensors")
    save_file(arrays, expected)
    for path in (expected, os.path.join(directory, "model.safetensors")):
        os.chmod(path, 0o644)  # the library makes them private


def read_checkpoint(directory):
    """Loads a checkpoint, refusing a missing or unexpected tensor, and scores 0, 1, 2, ..."""
    model, report = GPT2LMHeadModel.from_pretrained(directory, output_loading_info=True)
    problems = {key: value for key, value in report.items() if value}
    if problems:
        raise SystemExit(f"from_pretrained reports {problems}")
    model = model.double().eval()
    token = torch.arange(model.config.n_positions) % model.config.vocab_size
    with torch.no_grad():
        logp = torch.log_softmax(model(token[None]).logits[0], -1)
    for t in range(len(token) - 1):
        print(f"{logp[t, token[t + 1]].item():.6f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.read:
        read_checkpoint(arguments.read)
    else:
        write_golden()
