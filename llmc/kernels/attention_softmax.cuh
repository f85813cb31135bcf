/* The softmax of attention's kernels, forward, on fragments of scores in registers, and what else
   they have in common: keys on their way to shared memory, the batch from the slots' arguments. */
#pragma once
#include <float.h>
#include "attention_tile.cuh"

#define MASKED (-FLT_MAX / 4) /* a later key's score: e^MASKED is 0, and 0 * MASKED is 0 */

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

/* ---- keys and values, the batch -------------------------------------------------------------- */

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

static inline struct Packed packed_batch(const struct Rows *rows, const struct Heads *heads,
                                         const void *const pointers[], int count) {
    const int HS = heads->HS;
    bool aligned = true;
    for (int i = 0; i < count; i++)
        aligned = aligned && rows_aligned(pointers[i], (size_t)HS, sizeof(floatX));
    return Packed{rows->start, rows->prompt, rows->seen, rows->block, rows->blocks, rows->N,
                  heads->NH, heads->NKV, HS, 1.0f / sqrtf((float)HS), aligned};
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
