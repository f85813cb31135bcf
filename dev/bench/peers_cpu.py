"""CPU: ours beside PyTorch and llama.cpp, in turns, in one run.

    pip install -r dev/bench/requirements.txt
    make build/bench_turns
    python dev/bench/peers_cpu.py [OP=head,step,decode] [DTYPE=fp32,bf16] [TURNS=7] [LENGTH=64]
                                  [OUT=DIR]

    head    N 1024, C 768, V 50257, float32: log-probability and entropy of each target, and the
            gradients of a loss that uses both. Peers that have no entropy compute cross-entropy.
    step    GPT-2 124M, random weights, 4 sequences of LENGTH tokens: forward, backward, clipping,
            AdamW.
    decode  GPT-2 124M, random weights, 1, 8 and 32 completions of 48 tokens, sampled.

bf16: ours with --dtype bf16, PyTorch's autocast (for decode its weights in bf16, which is faster),
llama.cpp with a bf16 file.

Each contestant is a process that makes its inputs and then takes turns with the others, so that a
disturbance by other work hits all of them; the ratios are medians of those within a turn. Two
ratios: of seconds, and of the processors' seconds, which say more where other work runs. Memory is
what the process holds at most beyond its inputs, measured the same way for all. A peer
whose package is absent is said in a line. OMP_NUM_THREADS: the threads of each, where not all
processors are wanted.
"""
import ctypes
import os
import subprocess
import sys
import tempfile
import time

from peers_common import arguments, die, percentile, print_table, save, three, versions

PROCESSORS = len(os.sched_getaffinity(0))
THREADS = int(os.environ.get("OMP_NUM_THREADS", PROCESSORS))   # of each contestant
TOKENS = 48
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

# ---- a contestant: a process that answers a line with seconds, processors' seconds, bytes --------


def status_bytes(name):
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def serve(prepare, *numbers):
    """prepare returns the turn, and how many bytes of weights it made before it is called."""
    turn = prepare(*numbers)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")   # the high water mark is that of now
    before = status_bytes("VmRSS")
    for _ in sys.stdin:
        begin, processors = time.perf_counter(), time.process_time()
        turn()
        end, end_processors = time.perf_counter(), time.process_time()
        print(f"{end - begin:.6f} {end_processors - processors:.6f} "
              f"{status_bytes('VmHWM') - before}", flush=True)


class Contestant:
    """One of a group, from the command that starts it."""

    def __init__(self, name, command):
        self.name = name
        self.turns = []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment())

    def turn(self):
        """False: it has ended."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        answer = self.process.stdout.readline().split()
        if len(answer) == 3:
            self.turns.append([float(x) for x in answer])
        return len(answer) == 3

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def environment():
    """As a user has it, but the thread counts."""
    return {**os.environ, "OMP_NUM_THREADS": str(THREADS),
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "critical"}


def ours(op, dtype, *numbers):
    """The only place that knows our program."""
    program = os.path.join("build", "bench_turns")
    if not os.path.exists(program):
        die(f"there is no {program}: make {program}, and start this in the repository's root")
    return Contestant("policy.c", [program, op] + [str(n) for n in numbers] + [dtype])


def theirs(name, function, *numbers):
    return Contestant(name, [sys.executable, os.path.abspath(__file__), "--turns", function]
                      + [str(n) for n in numbers])


# ---- PyTorch -------------------------------------------------------------------------------------


def torch_head(kind, tokens, channels, vocabulary):
    """kind: eager, compiled (both with entropy), cross_entropy, linear_cross_entropy; with
    _autocast the first in bf16."""
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(THREADS)
    torch.manual_seed(7)

    def loss(E, W, target):
        logp = torch.log_softmax(E @ W.T, -1)
        picked = logp.gather(1, target[:, None])[:, 0]
        entropy = -(logp.exp() * logp).sum(-1)
        return -1e-3 * picked.sum() - 1e-5 * entropy.sum()

    def cross_entropy(E, W, target):
        return F.cross_entropy(E @ W.T, target)

    def native(E, W, target):
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(E, W, target, options=options)

    chosen = {"eager": loss, "compiled": torch.compile(loss), "autocast": loss,
              "cross_entropy": cross_entropy, "linear_cross_entropy": native}[kind]

    def make(n, c, v):
        E = torch.randn(n, c, requires_grad=True)
        W = (torch.randn(v, c) * (2 / c ** 0.5)).requires_grad_()
        return E, W, torch.arange(n) * 7919 % v

    def turn(E, W, target):
        E.grad = W.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            value = chosen(E, W, target)
        value.backward()

    turn(*make(64, 32, 500))   # libraries are loaded now
    inputs = make(tokens, channels, vocabulary)
    return lambda: turn(*inputs)


def new_gpt2():
    import torch
    import transformers
    torch.set_num_threads(THREADS)
    torch.manual_seed(7)
    config = transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    return transformers.GPT2LMHeadModel(config)


def torch_step(kind, count, length):
    """kind: float32, autocast (bf16), or default (bf16, and AdamW as it is without fused)."""
    import torch
    model = new_gpt2().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95),
                                  weight_decay=0.1,
                                  fused=kind != "default" or None)
    ids = torch.arange(count * (length + 1)).reshape(count, length + 1) * 7919 % 50257

    def turn():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "float32"):
            logits = model(ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return turn


def torch_decode(dtype, batch, tokens):
    """transformers' generate, sampling from the whole distribution."""
    import torch
    model = new_gpt2().eval().to(getattr(torch, TORCH_DTYPES[dtype]))
    prompt = torch.tensor([[4, 12]]).repeat(batch, 1)
    mask = torch.ones_like(prompt)

    def turn():
        with torch.inference_mode():
            out = model.generate(prompt, attention_mask=mask, do_sample=True, top_k=0,
                                 temperature=1.0, max_new_tokens=tokens, min_new_tokens=tokens,
                                 eos_token_id=None, pad_token_id=0)
        assert out.shape == (batch, 2 + tokens)

    return turn


def torch_loop(dtype, batch, tokens):
    """The same without generate: the model, its cache and multinomial, nothing else."""
    import torch
    model = new_gpt2().eval().to(getattr(torch, TORCH_DTYPES[dtype]))
    prompt = torch.tensor([[4, 12]]).repeat(batch, 1)

    def turn():
        ids, cache = prompt, None
        with torch.inference_mode():
            for _ in range(tokens):
                out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                ids = torch.multinomial(torch.softmax(out.logits[:, -1].float(), -1), 1)

    return turn


# ---- llama.cpp -----------------------------------------------------------------------------------

L, C, F, NH, V, T = 12, 768, 3072, 12, 50257, 1024


def write_gguf(path, dtype):
    """GPT-2 124M with random weights, without a vocabulary; bf16: its matrices."""
    import gguf
    import numpy
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(L)
    writer.add_context_length(T)
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(F)
    writer.add_head_count(NH)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("no_vocab")
    noise = numpy.random.default_rng(7)

    def add(name, *shape):
        x = noise.standard_normal(shape, numpy.float32) * numpy.float32(0.02)
        if dtype == "bf16" and len(shape) == 2 and name != "position_embd.weight":
            narrow = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quantize(x, narrow), raw_dtype=narrow)
        else:
            writer.add_tensor(name, 1 + x if "norm.weight" in name else x)

    add("token_embd.weight", V, C)
    add("position_embd.weight", T, C)
    layers = [("attn_qkv", 3 * C, C), ("attn_output", C, C), ("ffn_up", F, C), ("ffn_down", C, F)]
    for i in range(L):
        for name, rows, columns in layers:
            add(f"blk.{i}.{name}.weight", rows, columns)
            add(f"blk.{i}.{name}.bias", rows)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}.weight", C)
            add(f"blk.{i}.{name}.bias", C)
    add("output_norm.weight", C)
    add("output_norm.bias", C)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_context(path, batch, tokens):
    import llama_cpp as llama
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, ctypes.c_void_p())
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = batch * 64 * -(-(tokens + 2) // 64)
    params.n_batch = params.n_ubatch = max(32, 2 * batch)
    params.n_seq_max = batch
    params.n_threads = params.n_threads_batch = THREADS
    context = llama.llama_init_from_model(model, params) if model else None
    if not context:
        die("llama.cpp does not take the model")
    return llama, context, quiet


def llama_decode(kind, path, batch, tokens):
    """kind: sampled (by its sampler, from the whole distribution), or products: no sampling."""
    llama, context, quiet = llama_context(path, batch, tokens)
    sampler = llama.llama_sampler_init_dist(7)
    words = llama.llama_batch_init(2 * batch, 0, 1)

    def run(n, token_of, row_of, position):
        words.n_tokens = n
        for i in range(n):
            words.token[i], words.pos[i] = token_of(i), position(i)
            words.n_seq_id[i], words.seq_id[i][0] = 1, row_of(i)
            words.logits[i] = position(i) > 0
        if llama.llama_decode(context, words) != 0:
            die("llama_decode failed")

    def turn():
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        run(2 * batch, lambda i: (4, 12)[i % 2], lambda i: i // 2, lambda i: i % 2)
        at = [2 * b + 1 for b in range(batch)]
        for t in range(tokens):
            if kind == "sampled":
                drawn = [llama.llama_sampler_sample(sampler, context, i) for i in at]
            else:
                drawn = [(7919 * (t + 50 * b)) % V for b in range(batch)]
            if t + 1 < tokens:
                run(batch, drawn.__getitem__, lambda i: i, lambda i: t + 2)
            at = range(batch)
        assert quiet

    return turn


# ---- the contest ---------------------------------------------------------------------------------

PREPARE = {"torch_head": torch_head, "torch_step": torch_step, "torch_decode": torch_decode,
           "torch_loop": torch_loop, "llama_decode": llama_decode}


def contest(op, slot, shape, dtype, contestants, turns):
    """Rows of all, ours first."""
    for _ in range(turns + 1):   # the first turn is not counted
        contestants = [c for c in contestants if c.turn()]
    rows = []
    for c in contestants:
        seconds, processors, peaks = zip(*c.turns[1:])
        mine = contestants[0].turns[1:]
        low, middle, high = three(seconds)
        rows.append({
            "op": op, "slot": slot, "version": c.name, "backend": "cpu", "dtype": dtype,
            "shape": shape, "warm_p20_ms": 1e3 * low, "warm_p50_ms": 1e3 * middle,
            "warm_p80_ms": 1e3 * high, "processor_ms": 1e3 * percentile(processors, 0.5),
            "over_ours": percentile([a / b[0] for a, b in zip(seconds, mine)], 0.5),
            "over_ours_processor": percentile([a / b[1] for a, b in zip(processors, mine)], 0.5),
            "extra_mib": max(peaks) / 2 ** 20})
    for c in contestants:
        c.close()
    print(f"\n{op}, {dtype}: {shape}, {turns} turns")
    print_table(rows, [("version", "version"), ("warm_p20_ms", "ms 20 %"), ("warm_p50_ms", "50 %"),
                       ("warm_p80_ms", "80 %"), ("processor_ms", "processors' ms"),
                       ("over_ours", "over ours"), ("over_ours_processor", "by processors"),
                       ("extra_mib", "MiB")])
    return rows


HEADS = {"fp32": [("eager", "PyTorch eager"), ("compiled", "PyTorch compiled"),
                  ("cross_entropy", "PyTorch cross-entropy alone"),
                  ("linear_cross_entropy", "PyTorch linear_cross_entropy, chunked")],
         "bf16": [("autocast", "PyTorch eager, autocast")]}
STEPS = {"fp32": [("float32", "PyTorch")],
         "bf16": [("autocast", "PyTorch, autocast"),
                  ("default", "PyTorch, autocast, AdamW not fused")]}


def head_contest(turns, dtype):
    shape = (1024, 768, 50257)
    group = [ours("head", dtype, *shape)]
    group += [theirs(n, "torch_head", k, *shape) for k, n in HEADS[dtype]]
    return contest("head", "head_forward_backward", "{}x{}x{}".format(*shape), dtype, group, turns)


def step_contest(turns, dtype, length):
    group = [ours("step", dtype, 4, length)]
    group += [theirs(n, "torch_step", k, 4, length) for k, n in STEPS[dtype]]
    return contest("step", "whole", f"GPT-2 124M, B 4 T {length}", dtype, group, turns)


def decode_contest(turns, dtype, batch, gguf):
    group = [ours("decode", dtype, batch, TOKENS),
             theirs("PyTorch generate", "torch_decode", dtype, batch, TOKENS),
             theirs("PyTorch, a bare loop", "torch_loop", dtype, batch, TOKENS)]
    if gguf:
        group += [theirs("llama.cpp", "llama_decode", "sampled", gguf, batch, TOKENS),
                  theirs("llama.cpp, no sampling", "llama_decode", "products", gguf, batch, TOKENS)]
    shape = f"GPT-2 124M, batch {batch} x {TOKENS}"
    rows = contest("generate", "whole", shape, dtype, group, turns)
    for row in rows:
        row["tokens_per_second"] = 1e3 * batch * TOKENS / row["warm_p50_ms"]
    print("tokens/s: " + ", ".join(f"{r['version']} {r['tokens_per_second']:.0f}" for r in rows))
    return rows


def decode_contests(turns, dtype, known):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        gguf = os.path.join(folder, "gpt2.gguf")
        if "llama-cpp-python" in known and "gguf" in known:
            write_gguf(gguf, dtype)
        else:
            print("absent: llama.cpp (pip install llama-cpp-python gguf)")
            gguf = None
        for batch in (1, 8, 32):
            rows += decode_contest(turns, dtype, batch, gguf)
    return rows


def main():
    if sys.argv[1:2] == ["--turns"]:
        numbers = [int(a) if a.isdigit() else a for a in sys.argv[3:]]
        serve(PREPARE[sys.argv[2]], *numbers)
        return
    asked = arguments(sys.argv[1:], OP="head,step,decode", DTYPE="fp32,bf16", TURNS=7, LENGTH=64,
                      OUT="build/bench-results")
    ops, dtypes, rows = asked["OP"].split(","), asked["DTYPE"].split(","), []
    known = versions(["torch", "transformers", "llama-cpp-python", "gguf"])
    if not set(ops) <= {"head", "step", "decode"}:
        die(f"OP={asked['OP']}: it is of head, step, decode")
    if not set(dtypes) <= set(TORCH_DTYPES):
        die(f"DTYPE={asked['DTYPE']}: it is of fp32, bf16")
    for package in ("torch", "transformers"):
        if package not in known:
            die(f"{package} is absent: pip install -r dev/bench/requirements.txt")
    print(f"{THREADS} threads; " + ", ".join(f"{p} {v}" for p, v in known.items()))
    for dtype in dtypes:
        if "head" in ops:
            rows += head_contest(asked["TURNS"], dtype)
        if "step" in ops:
            rows += step_contest(asked["TURNS"], dtype, asked["LENGTH"])
        if "decode" in ops:
            rows += decode_contests(asked["TURNS"], dtype, known)
    save(asked["OUT"], "peers-cpu", rows, {"threads": THREADS, "versions": known})


if __name__ == "__main__":
    main()
