"""GPU: what others' kernels take for the head and for attention, and how far each is from float64.

    pip install -r dev/bench/requirements.txt   (and what stands at its end)
    python dev/bench/peers.py [OP=head,attention] [DTYPE=bf16] [PEERS=...] [SHAPES=n] [OUT=DIR]
                                [DEVICE=cuda] [PEER_SECONDS=200]

Shapes, data and timing are those of build/bench (doc/lab.md), whose newest table in OUT is read and
printed beside: CUDA events, half a second of warm-up, 25 calls, of which the 20th, 50th and 80th
percentile are shown, with what the call before left in the L2 cache (warm) and after twice its
size was written (cold). The bare matrix products of the shape are a row too.

    head       with entropy: J = sum a_i logp_i + b_i H_i, every token with its own a and b; else
               the sum of cross-entropies. One call is the forward and the backward pass. Errors of
               logp and H are the largest difference, of dE and dW relative L2 norms, against
               float64 on normal noise, and on noise with peaks ("peaked").
    attention  causal, forward alone and backward alone; relative L2 norms.

MiB is what PyTorch's allocator held at most beyond inputs and, of the head, gradients. Each peer
runs in a process of its own (PEER_SECONDS at most), so that one that crashes is one line. Those
that are absent are said in a line. SHAPES: only the first n of each operation. DEVICE=cpu checks on
tiny shapes, in float32, what runs there: exit code 1 if a peer fails or an error is larger than
rounding explains. Without a GPU, DEVICE=cuda says so and exits with 2.
"""
import ctypes
import functools
import glob
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import types

from peers_common import arguments, die, print_table, save, three, versions

HEAD = [(8192, 4096, 131072), (16384, 1024, 151936), (8192, 768, 50257), (8192, 2304, 256000)]
HEAD_TINY = [(70, 40, 333), (150, 72, 517)]
ATTENTION = [(8, 1024, 12, 12, 64), (4, 4096, 32, 8, 128), (64, 128, 12, 12, 64)]   # B T NH NKV HS
ATTENTION_TINY = [(2, 37, 4, 2, 16), (3, 70, 3, 3, 24)]
LARGEST_ERROR = 1e-4   # float32 on the CPU: sums of some hundred terms, logits below 40

# ---- measuring -----------------------------------------------------------------------------------


class Gpu:
    """Events on the current stream, a flushed cache, joules by NVML."""

    def __init__(self):
        import torch
        self.torch = torch
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.other = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
        self.nvml = None
        try:
            nvml, device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
            place = torch.cuda.get_device_properties(0)
            bus = f"{place.pci_domain_id:08x}:{place.pci_bus_id:02x}:{place.pci_device_id:02x}.0"
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByPciBusId_v2(
                    bus.encode(), ctypes.byref(device)) == 0:
                self.nvml, self.device = nvml, device
        except (OSError, AttributeError):
            pass

    def flush(self):
        self.other.zero_()

    def once(self, call, each):
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(each):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / each

    def joules(self):
        used = ctypes.c_ulonglong()
        if self.nvml and self.nvml.nvmlDeviceGetTotalEnergyConsumption(
                self.device, ctypes.byref(used)) == 0:
            return used.value / 1000
        return math.nan

    def reset_memory(self):
        self.torch.cuda.synchronize()
        self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated()

    def peak(self):
        return self.torch.cuda.max_memory_allocated()


class Cpu:
    """Only shows that everything works."""

    def flush(self):
        pass

    def once(self, call, each):
        begin = time.perf_counter()
        for _ in range(each):
            call()
        return 1e3 * (time.perf_counter() - begin) / each

    def joules(self):
        return math.nan

    def reset_memory(self):
        return 0

    def peak(self):
        return math.nan


def measure(meter, call, tiny):
    """Columns of a row, as dev/bench/measure.c takes them. The first call compiles and tunes; what
    it leaves (gradients) is there before the second, which shows what is needed besides."""
    call()
    before = meter.reset_memory()
    call()
    row = {"extra_mib": (meter.peak() - before) / 2 ** 20}
    begin, took = time.perf_counter(), meter.once(call, 1)
    each = int(0.1 / (took + 1e-4)) + 1 if took < 0.1 else 1
    while not tiny and time.perf_counter() - begin < 0.5:
        took = meter.once(call, each)
    count = 3 if tiny else 5 if took > 100 else 25
    warm = three([meter.once(call, each) for _ in range(count)])
    cold = []
    for _ in range(count):
        meter.flush()
        cold.append(meter.once(call, 1))
    cold = three(cold)
    for k, share in enumerate((20, 50, 80)):
        row[f"warm_p{share}_ms"], row[f"cold_p{share}_ms"] = warm[k], cold[k]
    calls, begin, joules = 0, time.perf_counter(), meter.joules()
    while not math.isnan(joules) and time.perf_counter() - begin < 1.2:
        meter.once(call, each)
        calls += each
    row["joules"] = (meter.joules() - joules) / calls if calls else math.nan
    return row


# ---- the head: data, the definition in float64 ---------------------------------------------------


def head_data(shape, dtype, device, peaked):
    """As dev/bench/op_head.c: logits of standard deviation 2; peaked: one word of each row has
    about 25 more, which is the target for every second."""
    import torch
    n, c, v = shape
    noise = torch.Generator(device).manual_seed(7)
    E = torch.randn(n, c, generator=noise, device=device)
    W = torch.randn(v, c, generator=noise, device=device) * (2 / c ** 0.5)
    i = torch.arange(n, device=device)
    target = i * 7919 % v
    E, W = E.to(dtype), W.to(dtype)
    if peaked:
        word = torch.where(i % 2 == 1, target, (target + 1) % v)
        E = (E.float() + 6.25 * W[word].float()).to(dtype)
    a = 0.5 - (i * 37 % 64).float() / 64
    b = (i * 23 % 32).float() / 64 - 0.2
    return E.requires_grad_(), W.requires_grad_(), target, a, b


def head_float64(E, W, target, a, b):
    """logp, H, dE, dW of J = sum a logp + b H, some rows at a time."""
    import torch
    E, W = E.detach().double(), W.detach().double()
    rows = max(1, (1 << 27) // W.shape[0])
    logps, entropies, dE, dW = [], [], [], torch.zeros_like(W)
    for first in range(0, E.shape[0], rows):
        part = slice(first, first + rows)
        logp = torch.log_softmax(E[part] @ W.T, -1)
        p = logp.exp()
        H = -(p * logp).sum(-1)
        dz = -a[part, None].double() * p - b[part, None].double() * p * (logp + H[:, None])
        y = target[part, None]
        dz.scatter_add_(1, y, a[part, None].double())
        logps.append(logp.gather(1, y)[:, 0])
        entropies.append(H)
        dE.append(dz @ W)
        dW.addmm_(dz.T, E[part])
    return torch.cat(logps), torch.cat(entropies), torch.cat(dE), dW


# ---- the head: peers. Each takes (E, W, target) and returns (logp, H), or a loss -----------------


def head_eager(E, W, target):
    import torch
    logp = torch.log_softmax((E @ W.T).float(), -1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def head_cross_entropy(E, W, target):
    import torch
    return torch.nn.functional.cross_entropy((E @ W.T).float(), target, reduction="sum")


def compiled(function):
    def make():
        import torch
        torch.compiler.reset()   # else the second shape would be compiled for shapes of any size
        return torch.compile(function, dynamic=False)
    return make


def make_native():
    """reduction="sum": gradients are made in the forward pass."""
    import torch
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda E, W, target: torch.nn.functional.linear_cross_entropy(
        E, W, target, reduction="sum", options=options)


def make_apple(filter_eps):
    def make():
        from cut_cross_entropy import linear_cross_entropy

        def call(E, W, target):
            how = {"impl": "cce", "filter_eps": filter_eps} if E.is_cuda \
                else {"impl": "torch_compile"}
            return linear_cross_entropy(E, W, target, reduction="sum", **how)
        return call
    return make


def make_liger():
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    return lambda E, W, target: liger_fused_linear_cross_entropy(E, W, target, reduction="sum")


def make_liger_entropy():
    """On a Hopper its native kernel, if nvidia-cutlass-dsl is there; else chunks in PyTorch."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction)

    def call(E, W, target):
        loss, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(
            E, W, target, 1.0, -100, 1, True)
        return -loss, entropy
    return call


def make_quack():
    from quack.linear_cross_entropy import chunked_linear_cross_entropy
    return lambda E, W, target: chunked_linear_cross_entropy(E, W, target, reduction="sum")


def make_verl():
    """Its kernels alone: the package's own __init__ would ask for ray and much else."""
    place = importlib.util.find_spec("verl").submodule_search_locations[0]
    for name, path in (("verl", place), ("verl.utils", os.path.join(place, "utils"))):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [path]
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy
    return lambda E, W, target: linear_cross_entropy(E, W, target, 1.0, "none")


# name, pip's package, whether it has entropy, on a CPU too, what makes it
HEAD_PEERS = {
    "eager": ("PyTorch eager", "torch", True, True, lambda: head_eager),
    "compiled": ("PyTorch compiled", "torch", True, True, compiled(head_eager)),
    "eager-ce": ("PyTorch eager", "torch", False, True, lambda: head_cross_entropy),
    "compiled-ce": ("PyTorch compiled", "torch", False, True, compiled(head_cross_entropy)),
    "native": ("PyTorch linear_cross_entropy", "torch", False, True, make_native),
    "apple": ("cut-cross-entropy", "cut-cross-entropy", False, True, make_apple("high")),
    "apple-exact": ("cut-cross-entropy, no filter", "cut-cross-entropy", False, False,
                    make_apple(None)),
    "liger": ("Liger linear cross-entropy", "liger-kernel", False, False, make_liger),
    "liger-entropy": ("Liger scaled cross-entropy", "liger-kernel", True, True,
                      make_liger_entropy),
    "quack": ("QuACK", "quack-kernels", False, False, make_quack),
    "verl": ("verl", "verl", True, False, make_verl),
}


def head_errors(function, entropy, shape, dtype, device, peaked):
    """Of one call, against float64."""
    import torch
    E, W, target, a, b = head_data(shape, dtype, device, peaked)
    if not entropy:
        a, b = -torch.ones_like(a), torch.zeros_like(b)
    out = function(E, W, target)
    loss = (a * out[0]).sum() + (b * out[1]).sum() if entropy else out
    loss.backward()
    logp, H, dE, dW = head_float64(E, W, target, a, b)
    pairs = {"loss": abs(float(loss.detach().double() - (a * logp).sum() - (b * H).sum())) /
             float((a * logp).abs().sum())}
    if entropy:
        pairs = {"logp": float((out[0].detach().double() - logp).abs().max()),
                 "H": float((out[1].detach().double() - H).abs().max())}
    for name, got, want in (("dE", E.grad, dE), ("dW", W.grad, dW)):
        pairs[name] = float((got.double() - want).norm() / want.norm())
    return pairs


def with_errors(row, errors):
    """errors: {"": of normal data, "peaked ": ...} as dictionaries."""
    row["errors"] = ", ".join(f"{data}{name} {value:.2g}" for data, pairs in errors.items()
                              for name, value in pairs.items())
    row["worst_error"] = max(v if v == v else math.inf for e in errors.values()
                             for v in e.values())
    return row


def head_rows(name, shape, dtype, device, meter):
    import torch
    title, _, entropy, _, make = HEAD_PEERS[name]
    function, tiny = make(), device == "cpu"
    row = {"op": "head", "slot": "head_forward_backward", "version": title,
           "mode": "entropy" if entropy else "cross-entropy",
           "shape": "{} x {} x {}".format(*shape)}
    E, W, target, a, b = head_data(shape, dtype, device, False)

    def both():
        E.grad = W.grad = None
        out = function(E, W, target)
        loss = (a * out[0]).sum() + (b * out[1]).sum() if entropy else out
        loss.backward()

    def score():
        with torch.no_grad():
            function(E, W, target)

    learned = {**row, **measure(meter, both, tiny), "flop": 6 * math.prod(shape)}
    scored = []
    if entropy:
        E.grad = W.grad = None
        scored = [{**row, "slot": "head_forward", **measure(meter, score, tiny),
                   "flop": 2 * math.prod(shape)}]
    E = W = None
    errors = {data: head_errors(function, entropy, shape, dtype, device, bool(data))
              for data in ("", "peaked ")}
    return [with_errors(learned, errors)] + scored


def product_rows(shape, dtype, device, meter):
    """The bare products through PyTorch, and a large copy."""
    import torch
    E, W, _, _, _ = head_data(shape, dtype, device, False)
    E, W = E.detach(), W.detach()
    dz = torch.randn(E.shape[0], W.shape[0], device=device, dtype=dtype)

    def three_products():
        torch.matmul(E, W.T)
        torch.matmul(dz, W)
        torch.matmul(dz.T, E)

    row = {"op": "head", "version": "three bare products", "mode": "products",
           "slot": "head_forward_backward", "shape": "{} x {} x {}".format(*shape)}
    return [{**row, **measure(meter, three_products, device == "cpu"),
             "flop": 6 * math.prod(shape)}]


# ---- attention -----------------------------------------------------------------------------------


def attention_data(shape, dtype, device):
    """q, k, v, dout as [B, T, heads, HS]."""
    import torch
    batch, length, heads, key_heads, size = shape
    noise = torch.Generator(device).manual_seed(7)
    x = [torch.randn(batch, length, h, size, generator=noise, device=device).to(dtype)
         for h in (heads, key_heads, key_heads, heads)]
    return [t.requires_grad_() for t in x[:3]] + [x[3]]


def attention_float64(q, k, v, dout):
    """The definition and its gradients, one sequence and one key head at a time."""
    import torch
    q, k, v, dout = (x.detach().double().transpose(1, 2) for x in (q, k, v, dout))
    out, dq, dk, dv = (torch.zeros_like(x) for x in (q, q, k, v))
    length, size, group = q.shape[2], q.shape[3], q.shape[1] // k.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    for s in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h // group
            p = (q[s, h] @ k[s, g].T / size ** 0.5).masked_fill_(later, -math.inf).softmax(-1)
            out[s, h] = p @ v[s, g]
            dv[s, g] += p.T @ dout[s, h]
            dp = dout[s, h] @ v[s, g].T
            dz = p * (dp - (p * dp).sum(-1, keepdim=True)) / size ** 0.5
            dq[s, h] = dz @ k[s, g]
            dk[s, g] += dz.T @ q[s, h]
    return [x.transpose(1, 2) for x in (out, dq, dk, dv)]


def attention_sdpa(q, k, v):
    import torch
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True,
        enable_gqa=q.shape[2] != k.shape[2]).transpose(1, 2)


def attention_eager(q, k, v):
    import torch
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    z = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
    later = torch.ones(z.shape[-2:], dtype=torch.bool, device=z.device).triu(1)
    return (z.masked_fill(later, -math.inf).softmax(-1) @ v).transpose(1, 2)


def make_flash():
    from flash_attn import flash_attn_func
    return lambda q, k, v: flash_attn_func(q, k, v, causal=True)


def make_flash_3():
    from flash_attn_interface import flash_attn_func

    def call(q, k, v):
        out = flash_attn_func(q, k, v, causal=True)
        return out[0] if isinstance(out, tuple) else out
    return call


def make_flash_4():
    from flash_attn.cute import flash_attn_func

    def call(q, k, v):
        out = flash_attn_func(q, k, v, causal=True)
        return out[0] if isinstance(out, tuple) else out
    return call


ATTENTION_PEERS = {
    "materialised": ("PyTorch eager, materialised", "torch", None, True, lambda: attention_eager),
    "sdpa": ("PyTorch scaled_dot_product_attention", "torch", None, True, lambda: attention_sdpa),
    "flash": ("flash-attn", "flash-attn", None, False, make_flash),
    "flash-3": ("flash-attn 3", "flash-attn-3", None, False, make_flash_3),
    "flash-4": ("flash-attn 4", "flash-attn-4", None, False, make_flash_4),
}


def attention_rows(name, shape, dtype, device, meter):
    import torch
    title, _, _, _, make = ATTENTION_PEERS[name]
    function, tiny = make(), device == "cpu"
    batch, length, heads, key_heads, size = shape
    q, k, v, dout = attention_data(shape, dtype, device)
    row = {"op": "attention", "version": title, "mode": "causal",
           "shape": f"B {batch} T {length} NH {heads}/{key_heads} HS {size}"}
    product = batch * heads * length * (length + 1) * size   # 2 operations, half of the square

    def forward():
        with torch.no_grad():
            function(q, k, v)

    rows = [{**row, "slot": "attention_forward", **measure(meter, forward, tiny),
             "flop": 2 * product}]
    out = function(q, k, v)
    backward = functools.partial(torch.autograd.grad, out, (q, k, v), dout, retain_graph=True)
    rows.append({**row, "slot": "attention_backward", **measure(meter, backward, tiny),
                 "flop": 5 * product})
    got, want = (out.detach(), *backward()), attention_float64(q, k, v, dout)
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want)]
    with_errors(rows[0], {"": {"out": errors[0]}})
    with_errors(rows[1], {"": dict(zip(("dq", "dk", "dv"), errors[1:]))})
    return rows


# ---- one process a peer --------------------------------------------------------------------------


def run_peer(op, name, dtype, device, count):
    """In a process of its own: a JSON line for each row."""
    import torch
    torch.manual_seed(7)
    meter = Gpu() if device == "cuda" else Cpu()
    shapes = {"head": (HEAD, HEAD_TINY), "attention": (ATTENTION, ATTENTION_TINY)}[op]
    element = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    for shape in shapes[device == "cpu"][:int(count)]:
        try:
            if name == "products":
                rows = product_rows(shape, element, device, meter)
            else:
                make = head_rows if op == "head" else attention_rows
                rows = make(name, shape, element, device, meter)
        except Exception as error:   # others' code: whatever it raises, the next shape is tried
            lines = str(error).strip().splitlines() or [""]
            rows = [{"failed": f"{shape}: {type(error).__name__}: {lines[0][:200]}"}]
            torch.cuda.empty_cache()
        for row in rows:
            print(json.dumps({**row, "backend": device, "dtype": dtype}), flush=True)


def rows_of(op, name, dtype, device, asked):
    """In a process; says what failed, and leaves that out."""
    seconds, place = asked["PEER_SECONDS"], os.path.abspath(__file__)
    command = [sys.executable, place, "--peer", op, name, dtype, device, str(asked["SHAPES"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
            why = f"exit code {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            why = f"stopped after {seconds} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    last = [line for line in errors.splitlines() if line.strip()][-1:]
    if why:
        print(f"{op} {name}: {why} {' '.join(last)[:300]}", flush=True)
    for row in rows:
        if "failed" in row:
            print(f"{op} {name} {row['failed']}", flush=True)
    good = [row for row in rows if "failed" not in row]
    asked["failed"] |= bool(why) or len(good) < len(rows)
    return good


def bench_rows(folder):
    """Rows of build/bench's newest table in the folder that hold times of the same slots."""
    paths = sorted(glob.glob(os.path.join(folder, "bench-*.json")))
    if not paths:
        return []
    with open(paths[-1], encoding="utf-8") as file:
        table = json.load(file)
    print(f"ours: {paths[-1]}, commit {table.get('commit')}, {table.get('device')}")
    return [{**row, "mode": "ours"} for row in table["rows"]
            if row["op"] in ("head", "attention") and row["backend"] == "cuda"
            and row.get("warm_p50_ms")]


def show(rows):
    for row in rows:
        if row.get("warm_p50_ms") and row.get("flop"):
            row["tflops"] = 1e-9 * row["flop"] / row["warm_p50_ms"]
    for op, slot in dict.fromkeys((row["op"], row["slot"]) for row in rows):
        print(f"\n{op}: {slot}")
        some = [row for row in rows if row["slot"] == slot]
        some.sort(key=lambda row: (row["shape"], row["warm_p50_ms"]))
        print_table(some, [("shape", "shape"), ("version", "version"), ("mode", "mode"),
                           ("dtype", "dtype"), ("warm_p20_ms", "warm ms 20 %"),
                           ("warm_p50_ms", "50 %"), ("warm_p80_ms", "80 %"),
                           ("cold_p50_ms", "cold 50 %"), ("tflops", "TFLOP/s"),
                           ("extra_mib", "MiB"), ("joules", "J"), ("errors", "errors")])


def software(device):
    import torch
    about = {"threads": torch.get_num_threads()}
    if device == "cuda":
        about.update(device=torch.cuda.get_device_name(0), cuda=torch.version.cuda)
    return about


def main():
    if sys.argv[1:2] == ["--peer"]:
        run_peer(*sys.argv[2:])
        return
    asked = arguments(sys.argv[1:], OP="head,attention", DEVICE="cuda", DTYPE="", PEERS="",
                      SHAPES=9, OUT="build/bench-results", PEER_SECONDS=200)
    device, ops = asked["DEVICE"], asked["OP"].split(",")
    dtype = asked["DTYPE"] or {"cuda": "bf16", "cpu": "fp32"}.get(device, "")
    all_peers = {"head": HEAD_PEERS, "attention": ATTENTION_PEERS}
    known = versions(["torch", "triton", "nvidia-cutlass-dsl"] +
                     [peer[1] for peers in all_peers.values() for peer in peers.values()])
    if "torch" not in known:
        die("torch is absent: pip install -r dev/bench/requirements.txt")
    if device not in ("cuda", "cpu") or dtype not in ("bf16", "fp16", "fp32"):
        die(f"DEVICE={device} DTYPE={dtype}: give cuda or cpu; bf16, fp16 or fp32")
    if not set(ops) <= set(all_peers):
        die(f"OP={asked['OP']}: it is of head, attention")
    chosen = [name for name in asked["PEERS"].split(",") if name]
    unknown = [name for name in chosen if not any(name in peers for peers in all_peers.values())]
    if unknown:
        die(f"PEERS={','.join(unknown)}: they are of " +
            ", ".join(name for peers in all_peers.values() for name in peers))
    import torch
    if device == "cuda" and not torch.cuda.is_available():
        die("there is no GPU here: peers are measured on one (DEVICE=cpu checks what runs here)")
    print(", ".join(f"{p} {v}" for p, v in known.items()))
    rows, asked["failed"] = [], False
    for op in ops:
        wanted = [name for name in all_peers[op] if name in chosen or not chosen]
        if op == "head" and wanted:
            rows += rows_of(op, "products", dtype, device, asked)
        for name in wanted:
            _, package, _, on_cpu, _ = all_peers[op][name]
            if package not in known:
                print(f"absent: {name} (pip install {package})")
            elif device == "cuda" or on_cpu:
                rows += rows_of(op, name, dtype, device, asked)
    show(rows + (bench_rows(asked["OUT"]) if device == "cuda" else []))
    save(asked["OUT"], f"peers-{device}", rows, {**software(device), "versions": known})
    wrong = [r for r in rows if (device, dtype) == ("cpu", "fp32")
             and not r.get("worst_error", 0) < LARGEST_ERROR]
    for row in wrong:
        print(f"WRONG  {row['op']} {row['version']} {row['shape']}: {row['errors']}")
    sys.exit(1 if wrong or not rows or (asked["failed"] and device == "cpu") else 0)


if __name__ == "__main__":
    main()
