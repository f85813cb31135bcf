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
#include "attention_backward.cuh"

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

/* ---- forward -------------------------------------------------------------------------------- */

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
    launch_delta(delta, dout, out, batch);
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
