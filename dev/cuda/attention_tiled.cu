/* Attention with tiles in shared memory and the softmax in one pass (FlashAttention, 2205.14135),
   without tensor cores: what the naive version lacks, and nothing else.

       a block: one entry of the list of query blocks (struct Rows), one head; a thread: a query

       keys, values     | 16 | 16 | 16 | ..     copied once for all the block's queries
                          |
                          v
       thread i   q in shared memory, scores of 16 keys, max, sum, moment, HSP outputs: registers

   Where the maximum moves by d <= 0, what was added before is multiplied by e^d (1805.02867). A key
   that the query does not see has no part in anything. Flop: 4 HS a pair instead of 8 HS; bytes: a
   key is read once for LIST_QUERIES queries. The products are FMAs, at a sixteenth of the tensor
   cores' rate; and of a block on the diagonal half the threads wait. */
#include "lab.cuh"

enum { KEYS = 16, HEAD_MOST = 128 };

struct Tiled {
    const floatX *qkv;
    const int *start, *prompt;
    const struct QueryBlock *block;
    int N, NH, NKV, HS;
    float scale;
};

/* Copies keys [first, first + KEYS) of those that the block sees, and their values, as float32.
   The j-th is the prompt's for j < P, else the row's own. */
template <int HSP>
static __device__ void copy_keys(float (*k)[HSP + 1], float (*v)[HSP + 1], const struct Tiled &a,
                                 int key_head, int first, int count, int prompt_start, int P,
                                 int start) {
    for (int i = threadIdx.x; i < KEYS * a.HS; i += blockDim.x) {
        int j = first + i / a.HS, c = i % a.HS;
        if (j >= count) continue;
        int token = j < P ? prompt_start + j : start + j - P;
        const floatX *from = a.qkv + ((size_t)token * (a.NH + 2 * a.NKV) + key_head) * a.HS + c;
        k[i / a.HS][c] = to_f(from[0]);
        v[i / a.HS][c] = to_f(from[(size_t)a.NKV * a.HS]);
    }
}

/* One query's state; its outputs are beside it. */
struct State {
    float max, sum, moment;
};

/* Adds the first `visible` keys of a tile. */
template <int HSP>
static __device__ void add_keys(struct State *x, float *out, const float *q,
                                const float (*k)[HSP + 1], const float (*v)[HSP + 1], int visible,
                                const struct Tiled &a) {
    float s[KEYS], max = x->max;
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        s[j] = -INFINITY;
        if (j >= visible) continue;
        float sum = 0;
        for (int c = 0; c < a.HS; c++) sum = fmaf(q[c], k[j][c], sum);
        s[j] = sum * a.scale;
        max = fmaxf(max, s[j]);
    }
    float d = x->sum > 0 ? x->max - max : 0, factor = x->sum > 0 ? expf(d) : 0;
    x->moment = factor * (x->moment + d * x->sum);
    x->sum *= factor;
    x->max = max;
#pragma unroll
    for (int c = 0; c < HSP; c++) out[c] *= factor;
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        if (j >= visible) continue;
        float p = expf(s[j] - max);
        x->sum += p;
        x->moment = fmaf(p, s[j] - max, x->moment);
#pragma unroll
        for (int c = 0; c < HSP; c++)
            if (c < a.HS) out[c] = fmaf(p, v[j][c], out[c]);
    }
}

/* Shared memory: q [LIST_QUERIES][HSP+1] (an odd pitch: the threads' rows begin in different
   banks), then k and v [KEYS][HSP+1]. */
template <int HSP> static constexpr size_t shared_bytes(int queries) {
    return (size_t)(queries + 2 * KEYS) * (HSP + 1) * sizeof(float);
}

template <int HSP>
static __global__ void forward_kernel(floatX *out, float *lse, float *entropy, struct Tiled a) {
    extern __shared__ float shared[];
    const int queries = blockDim.x, h = blockIdx.y, key_head = a.NH + h / (a.NH / a.NKV);
    const struct QueryBlock block = a.block[blockIdx.x];
    const int start = a.start[block.row], length = a.start[block.row + 1] - start;
    const int p = a.prompt ? a.prompt[block.row] : -1, prompt_start = p >= 0 ? a.start[p] : 0;
    const int P = p >= 0 ? a.start[p + 1] - prompt_start : 0;
    const int position = block.first + threadIdx.x, token = start + position;
    const int count = P + min_int(block.first + queries, length); /* keys that the block sees */
    float(*q)[HSP + 1] = (float(*)[HSP + 1])shared, (*k)[HSP + 1] = q + queries;
    float(*v)[HSP + 1] = k + KEYS, *own = q[threadIdx.x], sum[HSP];
    struct State x = {-INFINITY, 0, 0};
    for (int c = 0; c < a.HS && position < length; c++)
        own[c] = to_f(a.qkv[((size_t)token * (a.NH + 2 * a.NKV) + h) * a.HS + c]);
#pragma unroll
    for (int c = 0; c < HSP; c++) sum[c] = 0;
    for (int first = 0; first < count; first += KEYS) {
        __syncthreads();
        copy_keys<HSP>(k, v, a, key_head, first, count, prompt_start, P, start);
        __syncthreads();
        int visible = P + position + 1 - first;
        if (position < length && visible > 0) add_keys<HSP>(&x, sum, own, k, v, visible, a);
    }
    if (position >= length) return;
    floatX *to = out + ((size_t)token * a.NH + h) * a.HS;
#pragma unroll
    for (int c = 0; c < HSP; c++)
        if (c < a.HS) to[c] = from_f<floatX>(sum[c] / x.sum);
    lse[(size_t)h * a.N + token] = x.max + logf(x.sum);
    if (entropy) entropy[(size_t)h * a.N + token] = logf(x.sum) - x.moment / x.sum;
}

/* ---- the slot -------------------------------------------------------------------------------- */

static int list_queries; /* queries of a block of the list: what ships says how many */

template <int HSP>
static void launch(floatX *out, float *lse, float *entropy, const struct Tiled &a, int blocks) {
    size_t bytes = shared_bytes<HSP>(list_queries);
    dim3 grid(blocks, a.NH);
    ALLOW_SHARED(bytes, forward_kernel<HSP>);
    forward_kernel<HSP><<<grid, list_queries, bytes, cuda.stream>>>(out, lse, entropy, a);
    CUDA_CHECK_LAUNCH();
}

static void attention_forward(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads,
                              void *workspace) {
    (void)workspace;
    struct Tiled a = {qkv, rows->start, rows->prompt, rows->block, rows->N, heads->NH, heads->NKV,
                      heads->HS, 1.0f / sqrtf((float)heads->HS)};
    if (rows->N == 0) return;
    if (a.HS <= 64) launch<64>(out, lse, entropy, a, rows->blocks);
    else if (a.HS <= HEAD_MOST) launch<HEAD_MOST>(out, lse, entropy, a, rows->blocks);
    else cuda_die("attention_tiled has head sizes up to %d", HEAD_MOST);
}

static void fill(struct Ops *ops) {
    list_queries = ops->attention_block;
    ops->attention_forward = attention_forward;
}

extern const struct KernelFile PER_TYPE(attention_tiled) = {"attention_tiled", fill, no_workspace};
