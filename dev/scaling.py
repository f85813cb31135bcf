#!/usr/bin/env python3
"""A model of what a step of several ranks takes, and what each of them holds and sends.

Nothing here was measured: times follow from the sizes of a model, a machine's bandwidths and rates,
and the program's own rules (which rank does what, what is sent when). Prints the tables of
doc/scaling.md, which names every input.

    dev/scaling.py                 all tables
    dev/scaling.py --check PAGE    exit code 1 if a line of a table is not in PAGE
"""
import heapq
import random
import sys
from dataclasses import dataclass


# ---- what is computed on -------------------------------------------------------------------------

@dataclass
class Shape:
    """Sizes as a model's config.json has them. T: rows of learned positions; 0: rotary."""
    name: str
    V: int
    C: int
    F: int
    L: int
    NH: int
    NKV: int
    HS: int
    tied: bool
    T: int = 0

    def layer(self):
        """Parameters of a layer: (of matrix products, all)."""
        q, kv = self.NH * self.HS, self.NKV * self.HS
        if self.T:   # GPT-2: two matrices in the feed-forward block, a bias and two norms each
            product = self.C * (q + 2 * kv) + q * self.C + 2 * self.C * self.F
            return product, product + (q + 2 * kv) + self.C + self.F + self.C + 4 * self.C
        product = self.C * (q + 2 * kv) + q * self.C + 3 * self.C * self.F
        return product, product + 2 * self.C + 2 * self.HS   # norms: of the layer, of a head

    def buckets(self):
        """Parameters that are communicated together: embeddings, each layer, the rest."""
        rest = self.C * (2 if self.T else 1) + (0 if self.tied else self.V * self.C)
        return [(self.V + self.T) * self.C] + [self.layer()[1]] * self.L + [rest]

    def parameters(self):
        return sum(self.buckets())

    def products(self):
        """Weights that every token is multiplied by, the head's too."""
        return self.L * self.layer()[0] + self.V * self.C

    def flops(self, tokens):
        """Of a token that is learnt from, in a sequence of so many: 6 per weight, attention at half
        the length (2204.02311, appendix B). A third of it is the forward pass."""
        return 6 * self.products() + 6 * self.L * self.NH * self.HS * tokens

    def key_bytes(self):
        return self.L * 2 * self.NKV * self.HS * ELEMENT


@dataclass
class Machine:
    """A GPU and what joins it to others; bytes, floating-point operations and seconds."""
    memory: float = 3.35e12 * .7         # read bandwidth, and the share of it that decoding reaches
    rate: float = 989e12 * .4            # bf16, and the share of it that learning reaches
    kernel: float = 2e-6                 # from one kernel of a recorded step to the next
    inside: int = 8                      # GPUs of a machine
    link: float = 450e9 * .8             # NVLink, in one direction, and the share that is reached
    network: float = 50e9 * .8           # 400 Gbit/s for each GPU, likewise
    hop_inside: float = 3e-6             # latency from a GPU to the next in the ring
    hop_between: float = 10e-6
    host: float = 25e9                   # between a GPU and its host
    space: float = (.95 * 78 - 2.4) * 2**30   # that a plan may use, without its workspace


@dataclass
class Run:
    """A step's sizes. Lengths of completions are drawn evenly from 1 to `longest`."""
    prompts: int = 1024
    group: int = 16
    prompt: int = 512
    longest: int = 4096
    minibatches: int = 4
    rows: int = 512                      # decoded side by side on a rank, at most
    micro: int = 16384                   # tokens of a micro-batch, at most
    recompute: bool = False              # --recompute layer
    narrow: bool = False                 # --grad-comm bf16


ELEMENT = 2                              # bytes of a weight: bf16
GATHERED = 16                            # bytes of a token that ranks tell each other, about

GPT2 = Shape("GPT-2 124M", 50257, 768, 3072, 12, 12, 12, 64, True, 1024)
QWEN_06 = Shape("Qwen3-0.6B", 151936, 1024, 3072, 28, 16, 8, 128, True)
QWEN_4 = Shape("Qwen3-4B", 151936, 2560, 9728, 36, 32, 8, 128, True)
QWEN_8 = Shape("Qwen3-8B", 151936, 4096, 12288, 36, 32, 8, 128, False)
SHAPES = (GPT2, QWEN_06, QWEN_4, QWEN_8)


# ---- memory and bytes ----------------------------------------------------------------------------

def memory(shape, ranks, zero):
    """Bytes on each rank that there are once for each parameter."""
    optimizer = 12 / ranks if zero else 12     # master, m, v
    return shape.parameters() * (ELEMENT + 4 + optimizer)


def sent(ranks, whole):
    """Bytes that a rank sends in a reduce-scatter or an all-gather of `whole` bytes."""
    return whole * (ranks - 1) / ranks


def ring(machine, ranks, whole):
    """Seconds of a reduce-scatter or an all-gather of `whole` bytes. Between machines there is a
    ring for each GPU of a machine, all at once, so that every network card is used."""
    if ranks == 1:
        return 0.
    machines = -(-ranks // machine.inside)
    if machines == 1:
        return sent(ranks, whole) / machine.link + (ranks - 1) * machine.hop_inside
    width = min(machine.link, machine.network * machine.inside)
    hops = machines * machine.hop_between + (ranks - machines) * machine.hop_inside
    return sent(ranks, whole) / width + hops


# ---- who does what -------------------------------------------------------------------------------

def pieces(ranks, weights):
    """world_piece of llmc/world.c: borders of the ranks' contiguous parts of a list."""
    borders, before, i, whole = [0], 0, 0, sum(weights)
    for rank in range(1, ranks):
        while i < len(weights) and (2 * before + weights[i]) * ranks <= 2 * whole * rank:
            before += weights[i]
            i += 1
        borders.append(i)
    return borders + [len(weights)]


def draw_lengths(run):
    """Of every completion, group by group."""
    draw = random.Random(1)
    return [draw.randint(1, run.longest) for _ in range(run.prompts * run.group)]


# ---- rollout -------------------------------------------------------------------------------------

def decode_step(shape, machine, rows, context):
    """Seconds of one step: weights and the rows' keys and values are read once, or the products
    take longer; and the kernels follow each other."""
    read = (ELEMENT * shape.products() + shape.key_bytes() * context) / machine.memory
    products = 2 * shape.products() * rows / machine.rate
    return max(read, products) + (9 * shape.L + 8) * machine.kernel


def decode_rows(shape, machine, run, ranks):
    """Rows for whose keys and values there is room beside weights, optimizer and workspace."""
    room = machine.space - shape.parameters() * (ELEMENT + 12 / ranks)
    return min(run.rows, int(room / shape.key_bytes() / (run.prompt / run.group + run.longest / 2)))


def rollout(shape, machine, run, lengths, most):
    """Seconds of one rank for completions of such lengths, at most so many at once. A row that ends
    makes room for the next; between two ends a step is as long as in the middle between them."""
    if not lengths:
        return 0.
    prompts = len(lengths) / run.group
    total = prompts * run.prompt * shape.flops(run.prompt) / 3 / machine.rate
    waiting, now, rows = iter(lengths), 0, []
    for length in waiting:
        heapq.heappush(rows, (length, 0))   # the steps at which it ends and at which it began
        if len(rows) == most:
            break
    begun = 0                               # their sum
    while rows:
        end = rows[0][0]
        context = len(rows) * (run.prompt + (now + end) / 2) - begun
        total += (end - now) * decode_step(shape, machine, len(rows), context)
        begun -= heapq.heappop(rows)[1]
        now = end
        following = next(waiting, None)
        if following is not None:
            heapq.heappush(rows, (now + following, now))
            begun += now
    return total


# ---- update --------------------------------------------------------------------------------------

def costs(run, lengths):
    """Tokens that a completion takes through the network. Those of a prompt that are in a minibatch
    together share its prompt."""
    together = max(1, run.group / run.minibatches)
    return [length + run.prompt / together for length in lengths]


def slowest_share(ranks, weights):
    """Of the ranks' parts the largest."""
    borders = pieces(ranks, weights)
    return max(sum(weights[a:b]) for a, b in zip(borders, borders[1:]))


def exposed_backward(shape, machine, run, ranks, seconds):
    """What is left of the gradients' sums when a backward pass of `seconds` is over."""
    buckets, whole = shape.buckets(), sum(shape.buckets())
    computed = communicated = 0.
    for count in reversed(buckets):
        computed += seconds * count / whole
        begin = max(computed, communicated)
        communicated = begin + ring(machine, ranks, count * (2 if run.narrow else 4))
    return max(0., communicated - seconds)


def exposed_forward(shape, machine, ranks, seconds):
    """What a forward pass of `seconds` waits for weights on their way, bucket by bucket."""
    buckets, whole = shape.buckets(), sum(shape.buckets())
    now = arrived = 0.
    for count in buckets:
        arrived += ring(machine, ranks, count * ELEMENT)
        now = max(now, arrived) + seconds * count / whole
    return now - seconds


@dataclass
class Step:
    ranks: int
    completions: int
    rows: int
    rollout: float
    score: float
    learn: float
    adamw: float
    communication: float
    exposed: float
    gather: float
    tokens: int

    def seconds(self):
        return (self.rollout + self.score + self.learn + self.adamw + self.exposed + self.gather)


def gather_seconds(machine, ranks, tokens):
    """Of the experience: to the GPU, around, and all of it back to every host."""
    if ranks == 1:
        return 0.
    whole = tokens * GATHERED
    return whole / ranks / machine.host + ring(machine, ranks, whole) + whole / machine.host


def update(shape, machine, run, ranks, weights):
    """(learn, AdamW, communication, exposed) of one minibatch: seconds."""
    P, most = shape.parameters(), slowest_share(ranks, weights)
    flops = shape.flops(run.prompt + run.longest / 2)
    forward, backward = flops / 3 / machine.rate, flops * (1 if run.recompute else 2 / 3)
    backward /= machine.rate
    learn = most * (forward + backward)
    last = min(run.micro, most)   # tokens of the micro-batch behind which communication hides
    adamw = P * (4 + 4 / ranks + 30 / ranks) / machine.memory   # clear; norm; AdamW
    gradients = sum(ring(machine, ranks, n * (2 if run.narrow else 4)) for n in shape.buckets())
    gathered = sum(ring(machine, ranks, n * ELEMENT) for n in shape.buckets())
    exposed = exposed_backward(shape, machine, run, ranks, last * backward)
    exposed += exposed_forward(shape, machine, ranks, last * forward)
    return learn, adamw, gradients + gathered, exposed


def step(shape, run, ranks, machine=Machine()):
    lengths = draw_lengths(run)
    groups = pieces(ranks, [1] * run.prompts)
    most = decode_rows(shape, machine, run, ranks)
    slowest = max(rollout(shape, machine, run, lengths[a * run.group:b * run.group], most)
                  for a, b in zip(groups, groups[1:]))
    weights = costs(run, lengths)
    minibatches = [update(shape, machine, run, ranks, weights[m::run.minibatches])
                   for m in range(run.minibatches)]
    learn, adamw, communication, exposed = (sum(column) for column in zip(*minibatches))
    score = slowest_share(ranks, weights) * shape.flops(run.prompt + run.longest / 2) / 3
    mine, tokens = len(lengths) // ranks, sum(lengths)
    return Step(ranks, mine, min(most, mine), slowest, score / machine.rate, learn, adamw,
                communication, exposed, gather_seconds(machine, ranks, tokens), tokens)


# ---- tables --------------------------------------------------------------------------------------

def row(*cells):
    return "| " + " | ".join(cells) + " |"


def head(*cells):
    return [row(*cells), "|" + "---|" * len(cells)]


def table_memory():
    counts = (1, 8, 64)
    columns = [(1, 1)] + [(ranks, zero) for ranks in counts[1:] for zero in (0, 1)]
    yield from head("GiB a rank", "1 rank", *(f"{r} ranks, `--zero {z}`" for r, z in columns[1:]))
    for shape in SHAPES:
        cells = [memory(shape, ranks, zero) / 2**30 for ranks, zero in columns]
        yield row(f"{shape.name}, {shape.parameters() / 1e6:.1f} M", *(f"{x:.2f}" for x in cells))


def table_bytes():
    yield from head("GB that a rank sends in an update", "8 ranks", "64", "1024",
                    "8, `--grad-comm bf16`", "8, `--zero 0`")
    for shape in SHAPES:
        P = shape.parameters()
        cells = [sent(r, (4 + ELEMENT) * P) for r in (8, 64, 1024)]
        cells += [sent(8, (2 + ELEMENT) * P), 2 * sent(8, 4 * P)]
        yield row(shape.name, *(f"{x / 1e9:.3f}" for x in cells))


def table_rings(machine=Machine()):
    yield from head("ms", "8 ranks", "64", "1024")
    for shape in (GPT2, QWEN_8):
        sizes = (("a layer's gradients", 4 * shape.buckets()[1]),
                 ("the embedding's", 4 * shape.buckets()[0]))
        for name, whole in sizes:
            cells = [1e3 * ring(machine, r, whole) for r in (8, 64, 1024)]
            yield row(f"{shape.name}: {name}, {whole / 1e6:.0f} MB",
                      *(f"{x:.2f}" for x in cells))


def table_steps(shape, run_of, counts):
    yield from head("GPUs", "completions a GPU", "rows at once", "rollout", "score", "learn",
                    "AdamW", "communication", "of it not hidden", "gather", "step, s",
                    "tokens/s a GPU", "efficiency")
    first = None
    for ranks in counts:
        s = step(shape, run_of(ranks), ranks)
        speed = s.tokens / s.seconds() / ranks
        first = first or speed
        yield row(str(ranks), str(s.completions), str(s.rows), *(f"{x:.2f}" for x in (
            s.rollout, s.score, s.learn, s.adamw, s.communication, s.exposed, s.gather,
            s.seconds())), f"{speed:.0f}", f"{speed / first:.2f}")


def tables():
    counts = (8, 64, 1024)
    yield "memory", table_memory()
    yield "bytes", table_bytes()
    yield "collectives", table_rings()
    for shape, again in ((QWEN_06, False), (QWEN_8, True)):
        yield (f"{shape.name}, the same batch",
               table_steps(shape, lambda ranks: Run(recompute=again), counts))
        yield (f"{shape.name}, the batch grows",
               table_steps(shape, lambda ranks: Run(prompts=16 * ranks, recompute=again), counts))


def main():
    check = open(sys.argv[2], encoding="utf-8").read() if sys.argv[1:2] == ["--check"] else None
    wrong = 0
    for name, lines in tables():
        lines = list(lines)
        if check is None:
            print(f"\n{name}\n")
            print("\n".join(lines))
            continue
        for line in lines:
            if line not in check:
                print(f"{sys.argv[2]}, {name}: not there: {line}", file=sys.stderr)
                wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
