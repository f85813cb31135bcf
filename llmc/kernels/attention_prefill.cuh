/* Attention of the prompts' tokens that a decode step stores (prefill): in the manner of training's
   forward pass, but keys and values come from the cache, and positions from the rows.

       rows of the step   | row 0 | row 1 | a5 a6 a7 | b0 b1 b2 b3 .. | - |    a, b: prompts
       borders of runs    ^       ^       ^          ^                ^
                                                     |
       keys of prompt b   [ page 0 ][ page 1 ][ .. ] one tile of keys after the other, from the
       query b0            #                         first: each read once by all of the run
       query b1            ##
       query b2            ###

   A run is neighbouring rows that are tokens of one prompt, at any positions; it lies between
   multiples of 64 rows. A block has a run and a query head, each of its four warps 16 queries: [16
   x STREAM] scores and [16 x HS] sums in registers, as attention_tile.cuh has them, with the
   products of training: mma in bf16 and fp16, with e^(s - m) rounded to floatX, FMAs in float32.

   A row's bits depend on its position only. Keys come in tiles from the prompt's first, whoever is
   beside the row; its sums over a tile have one order wherever in the warp it is; and a tile of
   later keys changes nothing, because the maximum stays, sums are multiplied by e^0 = 1, and what
   is added is 0. (But for a later value that is inf or NaN: 0 times it is NaN.) It does not depend
   on how a prompt is cut into steps, therefore. It does differ, by rounding, from what
   attend_kernel would compute. So which of the two has a row follows from what it is: a prompt's
   token always comes this way. A tail's never does, not even one that is stored again after its row
   was put back: it was stored by attend_kernel when it was drawn, and the keys of the next layer
   must have the same bits again.

   Cost: keys and values of a prompt of T tokens are read T / 64 times, each time as far as the
   tile's last query, for each query head; those of a group from the second cache level, for heads
   are the fastest index of the grid. doc/kernels/decode.md counts. */
#pragma once
#include <float.h>
#include "attention_cache.cuh"

/* M = 1, so that there are enough blocks: a step has few prompt tokens (512 if it has no more rows
   that draw), and the linear layers cost several times as much. */
template <int HSP> struct PrefillTiles {
    enum {
        OWN = WARPS * 16,
        STREAM = (NARROW ? 64 : 32) / (HSP <= 64 ? 1 : 2), /* divides a page */
        PITCH = HSP + VEC,
        BYTES = (OWN + 4 * STREAM) * PITCH * (int)sizeof(floatX) /* q; k and v twice */
    };
};
enum { PREFILL_ROWS = PrefillTiles<32>::OWN, PREFILL_TURNS = 4 };

/* A later key's score: e to it is 0, and it can be multiplied. */
#define LATER (-FLT_MAX / 4)

/* Scores are logarithms to base 2 where elements are narrow, to base e in float32. */
static __device__ __forceinline__ float power_of(float x) {
    return NARROW ? exp2_approx(x) : expf(x);
}

/* Neighbouring rows with tokens of one prompt. */
struct Run {
    int row, count, keys; /* keys: of the prompt, up to the run's last position */
};

/* What a lane knows of the two queries whose scores it has: of row_of(0, 0) and row_of(0, 2). */
struct Query {
    int at;         /* position; -1: there is no such row */
    float max, sum; /* of the scores so far; sum is the lane's share */
};

/* Scores s [16 x 8 N] of keys from `first` on become e^(s - max) under the new maximum; factor:
   what sums under the old one are now worth. */
template <int N>
static __device__ __forceinline__ void softmax_keys(float s[1][N][4], struct Query query[2],
                                                    float factor[1][2], int first, float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        struct Query *x = &query[half];
        float max = LATER;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                if (first + column_of(n, i) > x->at) s[0][n][i] = LATER;
                max = fmaxf(max, s[0][n][i]);
            }
        max = fmaxf(x->max, quad_max(max) * scale);
        factor[0][half] = power_of(x->max - max);
        x->max = max;
        x->sum *= factor[0][half];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[0][n][i] = power_of(fmaf(s[0][n][i], scale, -max));
                x->sum += s[0][n][i];
            }
    }
}

/* Starts bringing keys and values from position `first` on to a stage [2][STREAM][PITCH]. */
template <int HSP>
static __device__ __forceinline__ void load_cached(floatX *stage, const struct Decode *d,
                                                   const struct Run *run, int g, int first,
                                                   const struct Packed how) {
    enum { STREAM = PrefillTiles<HSP>::STREAM, PITCH = PrefillTiles<HSP>::PITCH };
    const int slot = d->rows.prompt_slot[run->row];
    for (int value = 0; value < 2; value++)
        load_tile<STREAM, HSP>(stage + value * STREAM * PITCH,
                               cache_head(d, false, slot, first, value, g), how.HS,
                               run->keys - first, how);
}

/* A run's queries of one head, brought to q [OWN][PITCH] in shared memory; keys and values pass
   through the two stages behind it. */
template <int HSP>
static __device__ __forceinline__ void attend_run(const struct Decode *d, floatX *q,
                                                  const struct Run *run, int h,
                                                  const struct Packed how) {
    typedef PrefillTiles<HSP> Tiles;
    enum { OWN = Tiles::OWN, STREAM = Tiles::STREAM, N = STREAM / 8, PITCH = Tiles::PITCH };
    const int HS = how.HS, NH = d->cache.heads.NH, width = (NH + 2 * d->cache.heads.NKV) * HS;
    const int g = h / (NH / d->cache.heads.NKV), offset = threadIdx.x / WARP * 16;
    floatX *stages = q + OWN * PITCH;
    struct Query query[2];
    for (int half = 0; half < 2; half++) {
        int row = offset + row_of(0, 2 * half);
        query[half] = Query{row < run->count ? d->rows.position[run->row + row] : -1, LATER, 0};
    }
    const int last = __reduce_max_sync(FULL_WARP, max_int(query[0].at, query[1].at));

    load_tile<OWN, HSP>(q, d->qkv + (int64_t)run->row * width + h * HS, width, run->count, how);
    load_cached<HSP>(stages, d, run, g, 0, how);
    cp_async_commit();
    float sum[1][HSP / 8][4] = {}, factor[1][2];
    for (int first = 0, stage = 0; first < run->keys; first += STREAM, stage ^= 1) {
        floatX *k = stages + stage * 2 * STREAM * PITCH, *v = k + STREAM * PITCH;
        cp_async_wait<0>();
        __syncthreads();
        if (first + STREAM < run->keys)
            load_cached<HSP>(stages + (stage ^ 1) * 2 * STREAM * PITCH, d, run, g, first + STREAM,
                             how);
        cp_async_commit();
        if (first > last) continue; /* all these keys are later */
        float s[1][N][4] = {};
        multiply_rows<1, N, HSP>(s, q + offset * PITCH, k);
        softmax_keys<N>(s, query, factor, first, how.scale);
        scale_rows<1, HSP / 8>(sum, factor);
        multiply_columns<1, N, HSP / 8>(sum, s, v);
    }
    for (int half = 0; half < 2; half++) factor[0][half] = 1.0f / quad_sum(query[half].sum);
#pragma unroll
    for (int n = 0; n < HSP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) /* + 0: a tile of later keys would also make +0 of -0 */
            sum[0][n][i] = fmaf(sum[0][n][i], factor[0][i / 2], 0.0f);
    store_rows<1, HSP>(d->out + ((int64_t)(run->row + offset) * NH + h) * HS, NH * HS,
                       run->count - offset, sum, q + offset * PITCH, how);
}

/* Bit i: row first + i begins something new. In every warp alike. */
static __device__ __forceinline__ uint64_t run_borders(const struct Decode *d, int first) {
    uint64_t borders = 0;
    for (int i = 0; i < PREFILL_ROWS; i += WARP) {
        const int own = i + threadIdx.x % WARP, r = first + own;
        bool border = own == 0 || r >= d->R || !same_segment(d, r - 1, r);
        borders |= (uint64_t)__ballot_sync(FULL_WARP, border) << i;
    }
    return borders;
}

/* The run of rows [row, row + count). In every warp alike. */
static __device__ __forceinline__ struct Run run_of(const struct Decode *d, int row, int count) {
    int last = -1;
    for (int i = threadIdx.x % WARP; i < count; i += WARP)
        last = max_int(last, d->rows.position[row + i]);
    return Run{row, count, __reduce_max_sync(FULL_WARP, last) + 1};
}

/* grid [NH][rows / 64][PREFILL_TURNS]: many short prompts among 64 rows are shared out to several
   blocks. */
template <int HSP>
static __global__ void __launch_bounds__(THREADS, 2) prefill_kernel(struct Decode d,
                                                                    struct Packed how) {
    extern __shared__ uint4 tiles[];
    const int first = blockIdx.y * PREFILL_ROWS;
    const uint64_t borders = run_borders(&d, first);
    unsigned turn = 0;
    for (int begin = 0, end; begin < PREFILL_ROWS && first + begin < d.R; begin = end) {
        for (end = begin + 1; end < PREFILL_ROWS && !(borders >> end & 1);) end++;
        if (!by_prefill(&d, first + begin)) continue;
        if (turn++ % PREFILL_TURNS != blockIdx.z) continue;
        const struct Run run = run_of(&d, first + begin, end - begin);
        attend_run<HSP>(&d, (floatX *)tiles, &run, blockIdx.x, how);
        __syncthreads(); /* before the next run's tiles come */
    }
}

template <int HSP> static void launch_prefill(const struct Decode *d, const struct Packed how) {
    typedef PrefillTiles<HSP> Tiles;
    const struct Decode arguments = *d;
    dim3 grid(arguments.cache.heads.NH, ceil_div(arguments.R, PREFILL_ROWS), PREFILL_TURNS);
    ALLOW_SHARED(Tiles::BYTES, prefill_kernel<HSP>);
    prefill_kernel<HSP><<<grid, THREADS, Tiles::BYTES, cuda.stream>>>(arguments, how);
    CUDA_CHECK_LAUNCH();
}

/* All rows of the step that are tokens of prompts; keys and values of the step are stored. */
static void attend_prompts(const struct Decode *d) {
    const int HS = d->cache.heads.HS;
    struct Packed how = {};
    how.HS = HS;
    how.scale = (NARROW ? 1.44269504f : 1.0f) / sqrtf((float)HS);
    how.aligned = d->whole && rows_aligned(d->out, (size_t)HS, sizeof(floatX));
    if (HS <= 32) launch_prefill<32>(d, how);
    else if (HS <= 64) launch_prefill<64>(d, how);
    else if (HS <= 96) launch_prefill<96>(d, how);
    else launch_prefill<128>(d, how);
}
