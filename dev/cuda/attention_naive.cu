/* Attention as its definition is written: a thread for each query (token, head) goes three times
   through the keys that the query sees, for the maximum, the sum, and the output. Backward the
   same way: a thread for each query makes dq, a thread for each key makes dk and dv.

       forward   2 HS flop a pair for the scores, three times, and 2 HS for the output
       bytes     every thread reads all its keys and values from the caches by itself: 2 HS elements
                 a pair and pass, where a tile of 64 queries would read them once for all 64

   Nothing is shared and nothing is kept, so nothing has to be synchronised: the version to check
   others by. Head sizes up to 128. */
#include "lab.cuh"

enum { HEAD_MOST = 128, QUERIES = 64 };

struct Naive {
    const floatX *qkv;
    const int *start, *prompt, *seen;
    int N, B, NH, NKV, HS;
    float scale;
};

/* The row that a token is in. */
static __device__ int row_of_token(const struct Naive &a, int token) {
    int low = 0, high = a.B;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (a.start[middle] <= token) low = middle;
        else high = middle;
    }
    while (low + 1 < a.B && a.start[low + 1] <= token) low++; /* empty rows */
    return low;
}

/* Head number `head` of all NH + 2 NKV of a token. */
static __device__ const floatX *head_at(const struct Naive &a, int token, int head) {
    return a.qkv + ((size_t)token * (a.NH + 2 * a.NKV) + head) * a.HS;
}

static __device__ float dot(const floatX *x, const floatX *y, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++) sum = fmaf(to_f(x[c]), to_f(y[c]), sum);
    return sum;
}

/* What a query sees: the keys of its prompt, then those of its row up to itself. The j-th. */
struct Keys {
    int prompt_start, prompt_count, start, count;
};
static __device__ struct Keys keys_of(const struct Naive &a, int token) {
    int b = row_of_token(a, token), p = a.prompt ? a.prompt[b] : -1;
    struct Keys keys = {0, 0, a.start[b], token - a.start[b] + 1};
    if (p >= 0) keys.prompt_start = a.start[p], keys.prompt_count = a.start[p + 1] - a.start[p];
    keys.count += keys.prompt_count;
    return keys;
}
static __device__ int key_token(const struct Keys &keys, int j) {
    return j < keys.prompt_count ? keys.prompt_start + j : keys.start + j - keys.prompt_count;
}

static __global__ void forward_kernel(floatX *out, float *lse, float *entropy, struct Naive a) {
    int token = blockIdx.x * QUERIES + threadIdx.x, h = blockIdx.y;
    if (token >= a.N) return;
    int key_head = a.NH + h / (a.NH / a.NKV), value_head = key_head + a.NKV;
    const floatX *q = head_at(a, token, h);
    struct Keys keys = keys_of(a, token);
    float max = -INFINITY, sum = 0, moment = 0, value[HEAD_MOST];
    for (int j = 0; j < keys.count; j++)
        max = fmaxf(max, dot(q, head_at(a, key_token(keys, j), key_head), a.HS) * a.scale);
    for (int j = 0; j < keys.count; j++) {
        float s = dot(q, head_at(a, key_token(keys, j), key_head), a.HS) * a.scale - max;
        sum += expf(s);
        moment += expf(s) * s;
    }
    for (int c = 0; c < a.HS; c++) value[c] = 0;
    for (int j = 0; j < keys.count; j++) {
        const floatX *v = head_at(a, key_token(keys, j), value_head);
        float s = dot(q, head_at(a, key_token(keys, j), key_head), a.HS) * a.scale - max;
        float p = expf(s) / sum;
        for (int c = 0; c < a.HS; c++) value[c] = fmaf(p, to_f(v[c]), value[c]);
    }
    for (int c = 0; c < a.HS; c++)
        out[((size_t)token * a.NH + h) * a.HS + c] = from_f<floatX>(value[c]);
    lse[(size_t)h * a.N + token] = max + logf(sum);
    if (entropy) entropy[(size_t)h * a.N + token] = logf(sum) - moment / sum;
}

/* What dq, dk and dv are made of, for one query and one key of a pair of heads. */
struct Pair {
    float p, ds;
};
struct Backward {
    struct Naive a;
    const floatX *dout, *out;
    const float *lse;
};
static __device__ struct Pair pair_of(const struct Backward &b, int query, int h, int key) {
    const struct Naive &a = b.a;
    int key_head = a.NH + h / (a.NH / a.NKV), value_head = key_head + a.NKV;
    const floatX *dout = b.dout + ((size_t)query * a.NH + h) * a.HS;
    const floatX *out = b.out + ((size_t)query * a.NH + h) * a.HS;
    float s = dot(head_at(a, query, h), head_at(a, key, key_head), a.HS) * a.scale;
    float p = expf(s - b.lse[(size_t)h * a.N + query]);
    float dp = dot(dout, head_at(a, key, value_head), a.HS), delta = dot(dout, out, a.HS);
    return Pair{p, p * (dp - delta) * a.scale};
}

static __global__ void backward_queries_kernel(floatX *dqkv, struct Backward b) {
    const struct Naive &a = b.a;
    int query = blockIdx.x * QUERIES + threadIdx.x, h = blockIdx.y;
    if (query >= a.N) return;
    int key_head = a.NH + h / (a.NH / a.NKV);
    struct Keys keys = keys_of(a, query);
    float dq[HEAD_MOST];
    for (int c = 0; c < a.HS; c++) dq[c] = 0;
    for (int j = 0; j < keys.count; j++) {
        int key = key_token(keys, j);
        float ds = pair_of(b, query, h, key).ds;
        const floatX *k = head_at(a, key, key_head);
        for (int c = 0; c < a.HS; c++) dq[c] = fmaf(ds, to_f(k[c]), dq[c]);
    }
    floatX *to = dqkv + (head_at(a, query, h) - a.qkv);
    for (int c = 0; c < a.HS; c++) to[c] = from_f<floatX>(dq[c]);
}

/* The queries that see a key are the tokens from it to the end of its row, or to `seen`, where the
   row is a prompt: of all query heads that read this key-value head. */
static __global__ void backward_keys_kernel(floatX *dqkv, struct Backward b) {
    const struct Naive &a = b.a;
    int key = blockIdx.x * QUERIES + threadIdx.x, g = blockIdx.y, group = a.NH / a.NKV;
    if (key >= a.N) return;
    int row = row_of_token(a, key), end = a.seen ? a.seen[row] : a.start[row + 1];
    float dk[HEAD_MOST], dv[HEAD_MOST];
    for (int c = 0; c < a.HS; c++) dk[c] = dv[c] = 0;
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int query = key; query < end; query++) {
            struct Pair pair = pair_of(b, query, h, key);
            const floatX *q = head_at(a, query, h);
            const floatX *dout = b.dout + ((size_t)query * a.NH + h) * a.HS;
            for (int c = 0; c < a.HS; c++) {
                dk[c] = fmaf(pair.ds, to_f(q[c]), dk[c]);
                dv[c] = fmaf(pair.p, to_f(dout[c]), dv[c]);
            }
        }
    floatX *to_key = dqkv + (head_at(a, key, a.NH + g) - a.qkv);
    floatX *to_value = to_key + (size_t)a.NKV * a.HS;
    for (int c = 0; c < a.HS; c++) {
        to_key[c] = from_f<floatX>(dk[c]);
        to_value[c] = from_f<floatX>(dv[c]);
    }
}

/* ---- the slots ------------------------------------------------------------------------------- */

static struct Naive naive(const floatX *qkv, const struct Rows *rows, const struct Heads *heads) {
    if (heads->HS > HEAD_MOST) cuda_die("attention_naive has head sizes up to %d", HEAD_MOST);
    return Naive{qkv, rows->start, rows->prompt, rows->seen, rows->N, rows->B, heads->NH,
                 heads->NKV, heads->HS, 1.0f / sqrtf((float)heads->HS)};
}

static void attention_forward(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads,
                              void *workspace) {
    (void)workspace;
    if (rows->N == 0) return;
    dim3 grid(ceil_div(rows->N, QUERIES), heads->NH);
    forward_kernel<<<grid, QUERIES, 0, cuda.stream>>>(out, lse, entropy,
                                                      naive(qkv, rows, heads));
    CUDA_CHECK_LAUNCH();
}

static void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out,
                               const floatX *qkv, const float *lse, const struct Rows *rows,
                               const struct Heads *heads, void *workspace) {
    (void)workspace;
    if (rows->N == 0) return;
    struct Backward b = {naive(qkv, rows, heads), dout, out, lse};
    dim3 queries(ceil_div(rows->N, QUERIES), heads->NH);
    dim3 keys(ceil_div(rows->N, QUERIES), heads->NKV);
    backward_queries_kernel<<<queries, QUERIES, 0, cuda.stream>>>(dqkv, b);
    CUDA_CHECK_LAUNCH();
    backward_keys_kernel<<<keys, QUERIES, 0, cuda.stream>>>(dqkv, b);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
}

extern const struct KernelFile PER_TYPE(attention_naive) = {"attention_naive", fill, no_workspace};
