/* Causal softmax attention of training, on packed rows: attention.c in CUDA, in the manner of
   FlashAttention-2 (2205.14135, 2307.08691). No T x T array is stored, whole or in part.

       s_ij = q_i k_j / sqrt(HS), j <= i    out_i = sum_j e^(s_ij - m_i) v_j / sum_j e^(s_ij - m_i)

   Forward keeps, for each query,

       m = max_j s_j,   l = sum_j e^(s_j - m),   w = sum_j e^(s_j - m) (s_j - m)
       lse = m + ln l,  H = ln l - w / l         so the entropy costs one FMA per pair

   and where the maximum moves by d = m - M <= 0 (1805.02867; w as in row_state.cuh), with a = e^d,

       out <- a out,    l <- a l,                w <- a (w + d l)     before new keys are added.

   Backward forms p_ij = e^(s_ij - lse_i) again, after delta_i = dout_i out_i by a small kernel:

       dp_ij = dout_i v_j,    ds_ij = p_ij (dp_ij - delta_i),    dv_j = sum_i p_ij dout_i
       dq_i = sum_j ds_ij k_j / sqrt(HS),                        dk_j = sum_i ds_ij q_i / sqrt(HS)

                keys ->                  forward, dq: a block OWNs rows of queries, keys and values
        q   [##        ]                 STREAM past it. dk, dv: a block owns keys and values of a
        u   [####      ]  - a block      key-value head, and the queries of all the heads that
        e   [######    ]    (forward,    read it stream past in order. All three are built alike:
        r   [########  ]    dq)
        i   [##########]                 - each of 4 warps has 16 M of the rows and works alone;
        e     |                          - product 1: [16 M x STREAM] = own rows x streamed rows^T;
        s     a block (dk, dv)           - product 2: [16 M x HS] += that x streamed rows. In
                                           registers, the result of 1 is the left operand of 2.

   dq and dk, dv each form s and dp, so backward is 7 products where 5 would do. In return every
   output has one writer and one order of summation: no atomics, no float32 partial sums in memory,
   the same bits every time.

   Streamed tiles are double-buffered: cp.async brings the next one during the products of this
   one, and a single barrier per tile publishes what landed and frees what was read.

   In bf16 and fp16 the products are mma.m16n8k16, and e^(s - m), p and ds are rounded to floatX
   for product 2. l and w add the unrounded numbers: they also make lse and H, float32 results; and
   the errors of rounding p, relative, unbiased and independent, come to no more in out than the
   rounding of out itself. In fp32 the same fragments are multiplied by FMAs: no tf32.

   Flop: 2 HS per pair and product, T (T + 1) / 2 pairs per row and head: forward 2 products, dq 3,
   dk and dv 4. Bytes: forward reads qkv once and writes out, for the keys of a head are read again
   from the second cache level only. doc/kernels/attention.md has the numbers. */
#include <float.h>
#include "attention_tile.cuh"

#define MASKED (-FLT_MAX / 4) /* a later key's score: e^MASKED is 0, and 0 * MASKED is 0 */

/* With M = 2 a streamed fragment serves two mma; with 1, shared memory feeds the tensor cores too
   slowly. But a thread has at most 255 registers, and not in every kernel do the sums of M = 2 fit.
   Shared memory stays within the 99 KB of sm_86. */
template <int HSP> struct ForwardTiles {
    enum {
        M = NARROW ? 2 : 1,
        OWN = WARPS * 16 * M,
        STREAM = (NARROW ? 64 : 32) / (HSP <= 64 ? 1 : 2),
        PITCH = HSP + VEC,
        BYTES = (OWN + 4 * STREAM) * PITCH * sizeof(floatX) /* q; k and v twice */
    };
};
template <int HSP> struct BackwardTiles {
    enum {
        M = NARROW && HSP <= 64 ? 2 : 1,
        OWN = WARPS * 16 * M,
        STREAM = NARROW || HSP <= 64 ? 32 : 16,
        PITCH = HSP + VEC,
        BYTES = (2 * OWN + 4 * STREAM) * PITCH * sizeof(floatX) /* 2 that stay; 2 streams twice */
    };
};

/* ---- softmax -------------------------------------------------------------------------------- */

/* Scores are logarithms of the base whose power is cheapest: 2 for narrow elements, where it is
   one instruction; e for float, to full precision. UNIT: the natural logarithm of the base. */
#define UNIT (NARROW ? 0.693147181f : 1.0f)
#define PER_UNIT (NARROW ? 1.44269504f : 1.0f)
static __device__ __forceinline__ float power(float x) {
    return NARROW ? exp2_approx(x) : expf(x);
}

/* Scores of later keys than the query become MASKED. The product's first query is `distance`
   positions after its first key; KEYS_ARE_ROWS or columns. */
template <int M, int N, bool KEYS_ARE_ROWS>
static __device__ __forceinline__ void mask_later(float s[M][N][4], int distance) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int later = column_of(n, i) - row_of(m, i);
                if ((KEYS_ARE_ROWS ? -later : later) > distance) s[m][n][i] = MASKED;
            }
}

/* What is known of a query's scores. max is the row's; sum and moment are a lane's share. */
struct Softmax {
    float max, sum, moment;
};

/* Scores s become e^(s - max) under the new maximum; factor: what sums under the old one are now
   worth. */
template <int M, int N>
static __device__ __forceinline__ void softmax_tile(float s[M][N][4], struct Softmax state[M][2],
                                                    float factor[M][2], float scale) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            struct Softmax *x = &state[m][half];
            float max = MASKED;
#pragma unroll
            for (int n = 0; n < N; n++)
                max = fmaxf(max, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            max = fmaxf(x->max, quad_max(max) * scale);
            float d = x->max - max, a = power(d);
            float sum = a * x->sum, moment = a * (x->moment + d * x->sum);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    float centred = fmaf(s[m][n][i], scale, -max), p = power(centred);
                    sum += p;
                    moment = fmaf(p, centred, moment);
                    s[m][n][i] = p;
                }
            *x = Softmax{max, sum, moment};
            factor[m][half] = a;
        }
}

/* ---- forward -------------------------------------------------------------------------------- */

/* Keys and values from position `first` on of a tile's row, into a stage [2][ROWS][PITCH]. key: the
   row's first. */
template <int ROWS, int HSP>
static __device__ __forceinline__ void load_keys(floatX *stage, const floatX *key, int first,
                                                 const struct Tile tile,
                                                 const struct Packed batch) {
    int stride = (batch.NH + 2 * batch.NKV) * batch.HS;
    const floatX *from = key + (int64_t)first * stride;
    load_tile<ROWS, HSP>(stage, from, stride, tile.T - first, batch, tile.P - first, tile.away);
    load_tile<ROWS, HSP>(stage + ROWS * (HSP + VEC), from + batch.NKV * batch.HS, stride,
                         tile.T - first, batch, tile.P - first, tile.away);
}

/* lse and entropy of a warp's rows; factor becomes 1 / sum. */
template <int M>
static __device__ __forceinline__ void store_statistics(float *lse, float *entropy, int rows,
                                                        const struct Softmax state[M][2],
                                                        float factor[M][2]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = quad_sum(state[m][half].sum), moment = quad_sum(state[m][half].moment);
            int row = row_of(m, 2 * half);
            factor[m][half] = 1.0f / sum;
            if (threadIdx.x % 4 != 0 || row >= rows) continue;
            lse[row] = state[m][half].max * UNIT + logf(sum);
            if (entropy) entropy[row] = logf(sum) - UNIT * (moment / sum);
        }
}

/* A block: OWN queries of one head. The bound of 2 blocks tells the compiler to use up to 255
   registers, where it would spill a few to have room for more blocks. */
template <int HSP>
static __global__ void __launch_bounds__(THREADS, 2)
forward_kernel(floatX *out, float *lse, float *entropy, const floatX *qkv,
               const struct Packed batch) {
    typedef ForwardTiles<HSP> Tiles;
    enum { M = Tiles::M, STREAM = Tiles::STREAM, N = STREAM / 8, PITCH = Tiles::PITCH };
    extern __shared__ uint4 shared[];
    const struct Share x = block_share<Tiles::OWN, M, false>(batch);
    const struct Tile tile = x.tile;
    if (tile.first >= tile.T) return;
    const int h = x.head, g = h / (batch.NH / batch.NKV), heads = batch.NH + 2 * batch.NKV;
    const int keys = min_int(tile.first + Tiles::OWN, tile.T);
    const floatX *key = qkv + vector_at(tile.start, heads, batch.NH + g, batch.HS);
    floatX *q = (floatX *)shared, *stages = q + Tiles::OWN * PITCH; /* [2][keys, values] */

    load_tile<Tiles::OWN, HSP>(q, qkv + vector_at(tile.start + tile.first, heads, h, batch.HS),
                               heads * batch.HS, tile.T - tile.first, batch);
    load_keys<STREAM, HSP>(stages, key, 0, tile, batch);
    cp_async_commit();
    float sum[M][HSP / 8][4] = {}, factor[M][2];
    struct Softmax state[M][2];
    for (int m = 0; m < M; m++) state[m][0] = state[m][1] = Softmax{MASKED, 0, 0};
    for (int first = 0, stage = 0; first < keys; first += STREAM, stage ^= 1) {
        floatX *k = stages + stage * 2 * STREAM * PITCH, *v = k + STREAM * PITCH;
        cp_async_wait<0>();
        __syncthreads();
        if (first + STREAM < keys)
            load_keys<STREAM, HSP>(stages + (stage ^ 1) * 2 * STREAM * PITCH, key, first + STREAM,
                                   tile, batch);
        cp_async_commit();
        if (x.rows <= 0 || first >= x.own + 16 * M) continue; /* all these keys are later */
        float s[M][N][4] = {};
        multiply_rows<M, N, HSP>(s, q + x.offset * PITCH, k);
        if (first + STREAM - 1 > x.own) mask_later<M, N, false>(s, x.own - first);
        softmax_tile<M, N>(s, state, factor, batch.scale * PER_UNIT);
        scale_rows<M, HSP / 8>(sum, factor);
        multiply_columns<M, N, HSP / 8>(sum, s, v);
    }
    if (x.rows <= 0) return;
    /* The warp's first token, computed from key: keeping x.token through the loop would take one
       register more than there is. */
    const int token = (int)((key - qkv) / (heads * batch.HS)) + x.own;
    size_t index = (size_t)h * batch.N + token;
    store_statistics<M>(lse + index, entropy ? entropy + index : NULL, x.rows, state, factor);
    scale_rows<M, HSP / 8>(sum, factor);
    store_rows<M, HSP>(out + vector_at(token, batch.NH, h, batch.HS),
                       batch.NH * batch.HS, x.rows, sum, q + x.offset * PITCH, batch);
}

/* ---- backward ------------------------------------------------------------------------------- */

/* delta [NH,N] = dout . out, a token's by 8 lanes. grid (tokens, NH) */
enum { DELTA_LANES = 8, DELTA_TOKENS = THREADS / DELTA_LANES };
static __global__ void __launch_bounds__(THREADS)
delta_kernel(float *delta, const floatX *dout, const floatX *out, const struct Packed batch) {
    int token = blockIdx.x * DELTA_TOKENS + threadIdx.x / DELTA_LANES, h = blockIdx.y;
    int64_t at = token < batch.N ? vector_at(token, batch.NH, h, batch.HS) : 0;
    float sum = 0;
    for (int i = threadIdx.x % DELTA_LANES * VEC; i < batch.HS; i += DELTA_LANES * VEC) {
        int count = token < batch.N ? batch.HS - i : 0;
        float x[VEC], y[VEC];
        load_some(x, dout + at + i, count, batch.aligned);
        load_some(y, out + at + i, count, batch.aligned);
        for (int j = 0; j < VEC; j++) sum = fmaf(x[j], y[j], sum);
    }
    for (int lanes = 1; lanes < DELTA_LANES; lanes *= 2)
        sum += __shfl_xor_sync(FULL_WARP, sum, lanes);
    if (token < batch.N && threadIdx.x % DELTA_LANES == 0)
        delta[(size_t)h * batch.N + token] = sum;
}

/* A block: OWN queries of one head. */
template <int HSP>
static __global__ void __launch_bounds__(THREADS, 2)
backward_queries_kernel(floatX *dqkv, const floatX *dout, const floatX *qkv, const float *lse,
                        const float *delta, const struct Packed batch) {
    typedef BackwardTiles<HSP> Tiles;
    enum { M = Tiles::M, STREAM = Tiles::STREAM, N = STREAM / 8, PITCH = Tiles::PITCH };
    extern __shared__ uint4 shared[];
    const struct Share x = block_share<Tiles::OWN, M, false>(batch);
    const struct Tile tile = x.tile;
    if (tile.first >= tile.T) return;
    const int h = x.head, g = h / (batch.NH / batch.NKV), heads = batch.NH + 2 * batch.NKV;
    const int keys = min_int(tile.first + Tiles::OWN, tile.T), start = tile.start + tile.first;
    const floatX *key = qkv + vector_at(tile.start, heads, batch.NH + g, batch.HS);
    floatX *q = (floatX *)shared, *d = q + Tiles::OWN * PITCH, *stages = d + Tiles::OWN * PITCH;

    load_tile<Tiles::OWN, HSP>(q, qkv + vector_at(start, heads, h, batch.HS),
                               heads * batch.HS, tile.T - tile.first, batch);
    load_tile<Tiles::OWN, HSP>(d, dout + vector_at(start, batch.NH, h, batch.HS),
                               batch.NH * batch.HS, tile.T - tile.first, batch);
    load_keys<STREAM, HSP>(stages, key, 0, tile, batch);
    cp_async_commit();
    float dq[M][HSP / 8][4] = {}, lse_of[M][2], delta_of[M][2], factor[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            int row = row_of(m, 2 * half);
            size_t index = (size_t)h * batch.N + x.token + row;
            lse_of[m][half] = row < x.rows ? lse[index] * PER_UNIT : 0.0f;
            delta_of[m][half] = row < x.rows ? delta[index] : 0.0f;
            factor[m][half] = batch.scale;
        }
    for (int first = 0, stage = 0; first < keys; first += STREAM, stage ^= 1) {
        floatX *k = stages + stage * 2 * STREAM * PITCH, *v = k + STREAM * PITCH;
        cp_async_wait<0>();
        __syncthreads();
        if (first + STREAM < keys)
            load_keys<STREAM, HSP>(stages + (stage ^ 1) * 2 * STREAM * PITCH, key, first + STREAM,
                                   tile, batch);
        cp_async_commit();
        if (x.rows <= 0 || first >= x.own + 16 * M) continue;
        float s[M][N][4] = {}, dp[M][N][4] = {};
        multiply_rows<M, N, HSP>(s, q + x.offset * PITCH, k);
        if (first + STREAM - 1 > x.own) mask_later<M, N, false>(s, x.own - first);
        multiply_rows<M, N, HSP>(dp, d + x.offset * PITCH, v);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float p = power(fmaf(s[m][n][i], batch.scale * PER_UNIT, -lse_of[m][i / 2]));
                    dp[m][n][i] = p * (dp[m][n][i] - delta_of[m][i / 2]);
                }
        multiply_columns<M, N, HSP / 8>(dq, dp, k);
    }
    if (x.rows <= 0) return;
    scale_rows<M, HSP / 8>(dq, factor);
    store_rows<M, HSP>(dqkv + vector_at(x.token, heads, h, batch.HS),
                       heads * batch.HS, x.rows, dq, q + x.offset * PITCH, batch);
}

/* Queries of head h from position `first` on, and their dout, into a stage [2][ROWS][PITCH]; lse
   and delta are stored in the padding of the two. */
template <int ROWS, int HSP>
static __device__ __forceinline__ void load_queries(floatX *stage, const floatX *qkv,
                                                    const floatX *dout, const float *lse,
                                                    const float *delta, const struct Packed batch,
                                                    const struct Tile tile, int h, int first) {
    int heads = batch.NH + 2 * batch.NKV, token = tile.start + first;
    int rows = tile.queries - first;
    floatX *d = stage + ROWS * (HSP + VEC);
    size_t index = (size_t)h * batch.N + token;
    load_tile<ROWS, HSP>(stage, qkv + vector_at(token, heads, h, batch.HS),
                         heads * batch.HS, rows, batch);
    load_tile<ROWS, HSP>(d, dout + vector_at(token, batch.NH, h, batch.HS),
                         batch.NH * batch.HS, rows, batch);
    load_row_floats<ROWS, HSP>(stage, lse + index, rows);
    load_row_floats<ROWS, HSP>(d, delta + index, rows);
}

/* Scores s [keys x queries] become p, and dp becomes ds. q and d: the queries' stage, for lse and
   delta. */
template <int M, int N, int HSP>
static __device__ __forceinline__ void softmax_backward(float s[M][N][4], float dp[M][N][4],
                                                        floatX *q, floatX *d, float scale) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float lse = *row_float<HSP>(q, column_of(n, j)) * PER_UNIT;
            float delta = *row_float<HSP>(d, column_of(n, j));
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = j; i < 4; i += 2) {
                    float p = power(fmaf(s[m][n][i], scale, -lse));
                    s[m][n][i] = p;
                    dp[m][n][i] = p * (dp[m][n][i] - delta);
                }
        }
}

/* A block: OWN keys and values of one key-value head. A step is STREAM queries of a query head:
   the heads that read this one in order, each from the diagonal on. */
template <int HSP>
static __global__ void __launch_bounds__(THREADS, 2)
backward_keys_kernel(floatX *dqkv, const floatX *dout, const floatX *qkv, const float *lse,
                     const float *delta, const struct Packed batch) {
    typedef BackwardTiles<HSP> Tiles;
    enum { M = Tiles::M, STREAM = Tiles::STREAM, N = STREAM / 8, PITCH = Tiles::PITCH };
    extern __shared__ uint4 shared[];
    const struct Share x = block_share<Tiles::OWN, M, true>(batch);
    const struct Tile tile = x.tile;
    if (tile.first >= tile.T) return;
    const int g = x.head, group = batch.NH / batch.NKV, heads = batch.NH + 2 * batch.NKV;
    const floatX *key = qkv + vector_at(tile.start, heads, batch.NH + g, batch.HS);
    floatX *k = (floatX *)shared, *v = k + Tiles::OWN * PITCH, *stages = v + Tiles::OWN * PITCH;

    load_keys<Tiles::OWN, HSP>(k, key, tile.first, tile, batch);
    load_queries<STREAM, HSP>(stages, qkv, dout, lse, delta, batch, tile, g * group, tile.first);
    cp_async_commit();
    float dk[M][HSP / 8][4] = {}, dv[M][HSP / 8][4] = {}, factor[M][2];
    for (int m = 0; m < M; m++) factor[m][0] = factor[m][1] = batch.scale;
    for (int h = g * group, first = tile.first, stage = 0, next_h, next; h < (g + 1) * group;
         h = next_h, first = next, stage ^= 1) {
        floatX *q = stages + stage * 2 * STREAM * PITCH, *d = q + STREAM * PITCH;
        next_h = h, next = first + STREAM;
        if (next >= tile.queries) next_h = h + 1, next = tile.first;
        cp_async_wait<0>();
        __syncthreads();
        if (next_h < (g + 1) * group)
            load_queries<STREAM, HSP>(stages + (stage ^ 1) * 2 * STREAM * PITCH, qkv, dout, lse,
                                      delta, batch, tile, next_h, next);
        cp_async_commit();
        if (x.rows <= 0 || first + STREAM <= x.own) continue; /* no query here sees these keys */
        float s[M][N][4] = {}, dp[M][N][4] = {};
        multiply_rows<M, N, HSP>(s, k + x.offset * PITCH, q);
        if (x.own + 16 * M - 1 > first) mask_later<M, N, true>(s, first - x.own);
        multiply_rows<M, N, HSP>(dp, v + x.offset * PITCH, d);
        softmax_backward<M, N, HSP>(s, dp, q, d, batch.scale * PER_UNIT);
        multiply_columns<M, N, HSP / 8>(dv, s, d);
        multiply_columns<M, N, HSP / 8>(dk, dp, q);
    }
    if (x.rows <= 0) return;
    floatX *out = dqkv + vector_at(x.token, heads, batch.NH + g, batch.HS);
    scale_rows<M, HSP / 8>(dk, factor);
    store_rows<M, HSP>(out, heads * batch.HS, x.rows, dk, k + x.offset * PITCH, batch);
    store_rows<M, HSP>(out + batch.NKV * batch.HS, heads * batch.HS, x.rows, dv,
                       v + x.offset * PITCH, batch);
}

/* ---- the slots ------------------------------------------------------------------------------ */

static struct Packed packed_batch(const struct Rows *rows, const struct Heads *heads,
                                  const void *const pointers[], int count) {
    const int HS = heads->HS;
    bool aligned = true;
    for (int i = 0; i < count; i++)
        aligned = aligned && rows_aligned(pointers[i], (size_t)HS, sizeof(floatX));
    return Packed{rows->start, rows->prompt, rows->seen, rows->block, rows->blocks, rows->N,
                  heads->NH, heads->NKV, HS, 1.0f / sqrtf((float)HS), aligned};
}

template <int HSP>
static void launch_forward(floatX *out, float *lse, float *entropy, const floatX *qkv,
                           const struct Packed batch) {
    typedef ForwardTiles<HSP> Tiles;
    dim3 grid = grid_of<Tiles::OWN>(batch, batch.NH);
    ALLOW_SHARED(Tiles::BYTES, forward_kernel<HSP>);
    forward_kernel<HSP><<<grid, THREADS, Tiles::BYTES, cuda.stream>>>(out, lse, entropy, qkv,
                                                                      batch);
    CUDA_CHECK_LAUNCH();
}

template <int HSP>
static void launch_backward(floatX *dqkv, const floatX *dout, const floatX *qkv, const float *lse,
                            const float *delta, const struct Packed batch) {
    typedef BackwardTiles<HSP> Tiles;
    dim3 queries = grid_of<Tiles::OWN>(batch, batch.NH);
    dim3 keys = grid_of<Tiles::OWN>(batch, batch.NKV);
    ALLOW_SHARED(Tiles::BYTES, backward_queries_kernel<HSP>);
    ALLOW_SHARED(Tiles::BYTES, backward_keys_kernel<HSP>);
    backward_queries_kernel<HSP><<<queries, THREADS, Tiles::BYTES, cuda.stream>>>(
        dqkv, dout, qkv, lse, delta, batch);
    CUDA_CHECK_LAUNCH();
    backward_keys_kernel<HSP><<<keys, THREADS, Tiles::BYTES, cuda.stream>>>(
        dqkv, dout, qkv, lse, delta, batch);
    CUDA_CHECK_LAUNCH();
}

/* The instance for a head size: the smallest that holds it. */
#define BY_HEAD_SIZE(HS, launch, ...)                                                   \
    do {                                                                                \
        if ((HS) <= 32) launch<32>(__VA_ARGS__);                                        \
        else if ((HS) <= 64) launch<64>(__VA_ARGS__);                                   \
        else if ((HS) <= 96) launch<96>(__VA_ARGS__);                                   \
        else if ((HS) <= 128) launch<128>(__VA_ARGS__);                                 \
        else cuda_die("attention on CUDA has head sizes up to 128, not %d", HS);        \
    } while (0)

static void attention_forward(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads,
                              void *workspace) {
    (void)workspace;
    const void *const pointers[] = {out, qkv};
    const struct Packed batch = packed_batch(rows, heads, pointers, 2);
    if (rows->N == 0) return;
    BY_HEAD_SIZE(heads->HS, launch_forward, out, lse, entropy, qkv, batch);
}

static void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out,
                               const floatX *qkv, const float *lse, const struct Rows *rows,
                               const struct Heads *heads, void *workspace) {
    float *delta = (float *)workspace;
    const void *const pointers[] = {dqkv, dout, out, qkv};
    const struct Packed batch = packed_batch(rows, heads, pointers, 4);
    if (rows->N == 0) return;
    dim3 grid(ceil_div(rows->N, DELTA_TOKENS), heads->NH);
    delta_kernel<<<grid, THREADS, 0, cuda.stream>>>(delta, dout, out, batch);
    CUDA_CHECK_LAUNCH();
    BY_HEAD_SIZE(heads->HS, launch_backward, dqkv, dout, qkv, lse, delta, batch);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)shape->NH * shape->N * sizeof(float); /* delta */
}

static void fill(struct Ops *ops) {
    ops->attention_block = LIST_QUERIES;
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
}

extern const struct KernelFile PER_TYPE(cuda_attention) = {"attention", fill, workspace_bytes};
