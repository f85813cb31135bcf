/* What the versions of head_sample share that store all logits [R,V] as float32: the product, the
   noise of a word, the better of two words, and the workspace.

   A row of logits is logits_stride(V) floats, so that four of them may be read at a time. */
#pragma once
#include "../../llmc/kernels/row_state.cuh"
#include "../../llmc/kernels/tile_product.cuh"
#include "lab.cuh"

enum { DRAW_WARPS = 8, DRAW_THREADS = DRAW_WARPS * WARP }; /* of a row */

static __host__ __device__ __forceinline__ size_t logits_stride(int V) {
    return align_up((size_t)V, 4);
}

static size_t logits_bytes(const struct OpsShape *shape) {
    return (size_t)shape->R * logits_stride(shape->V) * sizeof(float);
}

/* ---- the product ----------------------------------------------------------------------------- */

typedef Tile<16, 64, 16, 16, 1, 1, 8> FewRows;
typedef Tile<64, 64, 32, 32, 1, 1, 6> ManyRows;

/* logits [R][logits_stride] = E W^T scale */
template <class T>
static __global__ void __launch_bounds__(T::THREADS)
    logits_kernel(float *logits, TileRows E, TileRows W, int C, float scale, int row_tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int first_row = blockIdx.x % row_tiles * T::ROWS;
    const int first = blockIdx.x / row_tiles * T::COLUMNS;
    TileProduct product = {E, W, NULL, first_row, first, C, shared};
    TileSums<T> sum;
    tile_product_begin<T>(product);
    tile_product(&sum, product);
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c++) {
            const int row = first_row + lane_row<T>(r), column = first + lane_column<T>(c);
            if (row < E.end && column < W.end)
                logits[row * logits_stride(W.end) + column] = *lane_sum(&sum, r, c) * scale;
        }
}

template <class T>
static void launch_logits(float *logits, const TileRows &E, const TileRows &W, int C, float scale) {
    const int row_tiles = ceil_div(E.end, T::ROWS);
    ALLOW_SHARED(T::SHARED, logits_kernel<T>);
    logits_kernel<T><<<row_tiles * ceil_div(W.end, T::COLUMNS), T::THREADS, T::SHARED,
                       cuda.stream>>>(logits, E, W, C, scale, row_tiles);
    CUDA_CHECK_LAUNCH();
}

static void store_logits(float *logits, const floatX *E, const void *packed,
                         const struct Head *head, int R) {
    const TileRows hidden = tile_rows(E, (size_t)head->C, R);
    const TileRows weight = tile_rows((const floatX *)packed, packed_stride(head->C), head->V);
    const float scale = head->inv_temperature == 0 ? 1 : head->inv_temperature;
    if (R <= FewRows::ROWS) launch_logits<FewRows>(logits, hidden, weight, head->C, scale);
    else launch_logits<ManyRows>(logits, hidden, weight, head->C, scale);
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* The arguments of a draw, the same for all rows. */
struct Sampling {
    const int *position;
    const uint32_t *sample, *ordinal;
    uint32_t key[2];
    int V;
    bool greedy;
};

static struct Sampling sampling_of(const struct DecodeRows *rows, const uint32_t key[2],
                                   const struct Head *head) {
    return Sampling{rows->position, rows->sample, rows->ordinal, {key[0], key[1]}, head->V,
                    head->inv_temperature == 0};
}

/* score [4] = z + noise of words v .. v + 3, v a multiple of 4: one call of Philox has all four.
   Both logarithms are the library's. */
static __device__ __forceinline__ void scores(float score[4], const float z[4], int v, int row,
                                              const Sampling &s) {
    uint32_t counter[4] = {(uint32_t)v / 4, (uint32_t)s.position[row] + 1, s.sample[row],
                           s.ordinal[row]}, word[4];
    if (!s.greedy) philox(word, counter, s.key);
#pragma unroll
    for (int e = 0; e < 4; e++)
        score[e] = s.greedy ? z[e] : z[e] - logf(-logf(rng_uniform(word[e])));
}

/* The best word so far. The first one that is looked at stays if no score is a number. */
struct Winner {
    float score, logit;
    int token;
};

static __device__ __forceinline__ Winner better(Winner x, Winner y) {
    return y.score > x.score || (y.score == x.score && y.token < x.token) ? y : x;
}

static __device__ __forceinline__ Winner winner_shuffle(Winner x, int lanes) {
    return Winner{__shfl_xor_sync(FULL_WARP, x.score, lanes),
                  __shfl_xor_sync(FULL_WARP, x.logit, lanes),
                  __shfl_xor_sync(FULL_WARP, x.token, lanes)};
}

/* What a row of m, s and w (row_state.cuh) with that winner gives; an empty row gives zeros. */
static __device__ __forceinline__ void write_draw(int *token, float *logp, float *entropy, int row,
                                                  const Winner &winner, const RowState &state,
                                                  bool empty) {
    token[row] = empty ? 0 : winner.token;
    logp[row] = empty ? 0 : (winner.logit - state.m) - logf(state.s);
    entropy[row] = empty ? 0 : row_state_entropy(state);
}
