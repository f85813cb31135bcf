/* What attention's backward kernels have in common: delta_i = dout_i out_i, queries on their way to
   shared memory, and p and ds of fragments of scores. */
#pragma once
#include "attention_softmax.cuh"

template <int HSP> struct BackwardTiles {
    enum {
        M = NARROW && HSP <= 64 ? 2 : 1,
        OWN = WARPS * 16 * M,
        STREAM = NARROW || HSP <= 64 ? 32 : 16,
        PITCH = HSP + VEC,
        BYTES = (2 * OWN + 4 * STREAM) * PITCH * sizeof(floatX) /* 2 that stay; 2 streams twice */
    };
};

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

static void launch_delta(float *delta, const floatX *dout, const floatX *out,
                         const struct Packed batch) {
    dim3 grid(ceil_div(batch.N, DELTA_TOKENS), batch.NH);
    delta_kernel<<<grid, THREADS, 0, cuda.stream>>>(delta, dout, out, batch);
    CUDA_CHECK_LAUNCH();
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
