/* Drawing the next token, without the R x V logits.

   With z = E W^T / temperature, the v with the largest z_v - log(-log u_v) is a draw from
   softmax(z) (Gumbel-max). Its log-probability is (z_v - m) - ln s, the row's entropy ln s - w / s
   (row_state.cuh). The maximum and the sums are taken piece by piece:

             packed W [Vp,C]: tiles of 128 words
                | tile 0 | tile 1 | ..     a row of a tile belongs to 4 warps, 32 words each, and in
           E    +--------+--------+        a warp to 4 lanes, 8 words each. Merged over lanes, then
        16, 64  | Draw   | Draw   |        warps: one Draw per (row, tile), 24 bytes for 128 logits,
        or 128  |        |        |        goes to the workspace; a second kernel merges a row's
        rows    +--------+--------+        tiles

   Noise: one call of Philox gives four words, for four neighbouring v of one row. In the layout of
   the sums two neighbouring lanes share such four, in two rows. So the even lane calls for the
   upper row, the odd one for the lower, and they exchange halves: one call and two shuffles for a
   lane's four logits, and nothing is drawn twice.

        lane       even        odd
        row g      z0 z1       z2 z3       <- words of the even lane's call
        row g + 8  z0 z1       z2 z3       <- words of the odd lane's call

   The noise of every v is computed. Skipping those that cannot win (it is within -2.82 and 16.64)
   would be exact, but within one tile logits rarely differ by so much.

   All heights cut a row of the vocabulary in the same way and add in the same order, so a row's
   bits do not depend on the other rows. Bytes: W once from memory, again from L2 for each further
   row tile. Flop: 2 R C V, and about 60 instructions of statistics and noise per logit. */
#include "tile_product.cuh"
#include "row_state.cuh"
#include <limits.h>

enum { WORDS = 128, MERGE_WARPS = 4, ADVANCE_THREADS = 256 };

/* rows, columns, a warp's rows and columns, split, depth, stages. Two blocks or more share a
   multiprocessor, so that one multiplies while the other draws. */
typedef Tile<16, WORDS, 16, 32, 1, 1, 4> FewRows;
typedef Tile<64, WORDS, 64, 32, 1, 1, 3> SomeRows;
typedef Tile<128, WORDS, 64, 32, 1, 1, 2> ManyRows;

/* The statistics and the winner among some of a row's words. */
struct Draw {
    float m, s, w;   /* of RowState */
    float score;     /* of the winner: z - log(-log u), or z when greedy */
    float logit;     /* z of the winner */
    int token;
};

/* The arguments of a draw, the same for all blocks. */
struct Sampling {
    const int *position;
    const uint32_t *sample, *ordinal;
    uint32_t key[2];
    int R, V;
    float inv_temperature;
    bool greedy;
};

/* The better of two winners; of equal ones the smaller v. */
static __device__ __forceinline__ void take_winner(Draw *best, float score, float logit,
                                                   int token) {
    if (score > best->score || (score == best->score && token < best->token))
        best->score = score, best->logit = logit, best->token = token;
}

static __device__ __forceinline__ Draw draw_merge(Draw x, Draw y) {
    RowState state = row_state_merge(RowState{x.m, x.s, x.w, 0, 0}, RowState{y.m, y.s, y.w, 0, 0});
    x.m = state.m, x.s = state.s, x.w = state.w;
    take_winner(&x, y.score, y.logit, y.token);
    return x;
}

static __device__ __forceinline__ Draw draw_shuffle(Draw x, int lanes) {
    x.m = __shfl_xor_sync(FULL_WARP, x.m, lanes);
    x.s = __shfl_xor_sync(FULL_WARP, x.s, lanes);
    x.w = __shfl_xor_sync(FULL_WARP, x.w, lanes);
    x.score = __shfl_xor_sync(FULL_WARP, x.score, lanes);
    x.logit = __shfl_xor_sync(FULL_WARP, x.logit, lanes);
    x.token = __shfl_xor_sync(FULL_WARP, x.token, lanes);
    return x;
}

/* ---- a tile's epilogue ----------------------------------------------------------------------- */

/* upper, lower [2]: the random words of a lane's four logits in one 16 x 8 piece, in its upper and
   its lower row. counter: the words of the row this lane calls for; column: its first of the piece.
   See the drawing above. */
static __device__ __forceinline__ void draw_words(uint32_t *upper, uint32_t *lower,
                                                  const uint32_t counter[3], int column,
                                                  const uint32_t key[2]) {
    bool odd = threadIdx.x % 2;
    uint32_t full[4] = {(uint32_t)column / 4, counter[0], counter[1], counter[2]}, out[4];
    philox(out, full, key);
#pragma unroll
    for (int e = 0; e < 2; e++) {
        uint32_t kept = odd ? out[2 + e] : out[e];
        uint32_t got = __shfl_xor_sync(FULL_WARP, odd ? out[e] : out[2 + e], 1);
        upper[e] = odd ? got : kept;
        lower[e] = odd ? kept : got;
    }
}

/* The draw among one row's words in this warp, of which a lane has z and word [COUNT], from word
   `column` on. All four lanes of the row get the result. */
template <int COUNT>
static __device__ __forceinline__ Draw draw_row(const float *z, const uint32_t *word, int column,
                                                const Sampling &sampling) {
    RowState state = row_state_empty();
#pragma unroll
    for (int c = 0; c < COUNT; c++) state.m = fmaxf(state.m, z[c]);
    state.m = fmaxf(state.m, __shfl_xor_sync(FULL_WARP, state.m, 1));
    state.m = fmaxf(state.m, __shfl_xor_sync(FULL_WARP, state.m, 2));
    /* The initial token is in range: if all scores are NaN, none is larger, and it stays. */
    Draw best = {state.m, 0, 0, -INFINITY, -INFINITY, min_int(column, sampling.V - 1)};
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        row_state_add(&state, z[c]);
        float noise = sampling.greedy ? 0.0f : -logf(-logf(rng_uniform(word[c])));
        if (z[c] + noise > best.score) { /* of equal scores the first, smaller v stays */
            best.score = z[c] + noise, best.logit = z[c];
            best.token = column + lane_column_step(c);
        }
    }
    best.s = state.s, best.w = state.w;
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
        Draw other = draw_shuffle(best, lanes);
        best.s += other.s, best.w += other.w;
        take_winner(&best, other.score, other.logit, other.token);
    }
    return best;
}

/* Turns a warp's sums into draws, one for each of its rows and this warp's words:
   part [ROWS][WARPS_ACROSS] in shared memory. Words from V on are masked. */
template <class T>
static __device__ __forceinline__ void draw_tile(Draw *part, TileSums<T> *sum, int first_row,
                                                 int first, const Sampling &sampling) {
    int column = first + lane_column<T>(0);
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r += 2) {
        int called = min_int(first_row + lane_row<T>(r + threadIdx.x % 2), sampling.R - 1);
        uint32_t counter[3] = {(uint32_t)sampling.position[called] + 1, sampling.sample[called],
                               sampling.ordinal[called]};
        uint32_t word[2][T::LANE_COLUMNS];
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c += 2)
            draw_words(word[0] + c, word[1] + c, counter, column + lane_column_step(c),
                       sampling.key);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float z[T::LANE_COLUMNS];
#pragma unroll
            for (int c = 0; c < T::LANE_COLUMNS; c++) {
                float logit = __fmul_rn(*lane_sum(sum, r + h, c), sampling.inv_temperature);
                z[c] = column + lane_column_step(c) < sampling.V ? logit : -INFINITY;
            }
            Draw draw = draw_row<T::LANE_COLUMNS>(z, word[h], column, sampling);
            if (threadIdx.x % 4 == 0)
                part[lane_row<T>(r + h) * T::WARPS_ACROSS + tile_warp_across<T>()] = draw;
        }
    }
}

template <class T>
static __global__ void __launch_bounds__(T::THREADS, 2)
    sample_kernel(Draw *draws, TileRows E, TileRows W, Sampling sampling, int C, int row_tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x % row_tiles * T::ROWS;
    int tile = blockIdx.x / row_tiles, tiles = ceil_div(sampling.V, WORDS);
    TileProduct product = {E, W, NULL, first_row, tile * WORDS, C, shared};
    TileSums<T> sum;
    tile_product_begin<T>(product);
    tile_product(&sum, product);
    __syncthreads();
    Draw *part = (Draw *)shared;
    draw_tile(part, &sum, first_row, tile * WORDS, sampling);
    __syncthreads();
    int row = threadIdx.x;
    if (row >= T::ROWS || first_row + row >= sampling.R) return;
    Draw draw = part[row * T::WARPS_ACROSS];
#pragma unroll
    for (int across = 1; across < T::WARPS_ACROSS; across++)
        draw = draw_merge(draw, part[row * T::WARPS_ACROSS + across]);
    draws[(size_t)(first_row + row) * tiles + tile] = draw;
}

/* ---- merging --------------------------------------------------------------------------------- */

/* A warp merges a row's tiles: each lane every 32nd, in order; then the lanes. */
static __global__ void merge_kernel(int *token, float *logp, float *entropy, const Draw *draws,
                                    int R, int tiles) {
    int row = blockIdx.x * MERGE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= R) return;
    draws += (size_t)row * tiles;
    Draw draw = {-INFINITY, 0, 0, -INFINITY, -INFINITY, INT_MAX};
    for (int tile = lane; tile < tiles; tile += WARP) draw = draw_merge(draw, draws[tile]);
    for (int lanes = 1; lanes < WARP; lanes *= 2)
        draw = draw_merge(draw, draw_shuffle(draw, lanes));
    if (lane != 0) return;
    RowState state = {draw.m, draw.s, draw.w, 0, 0};
    token[row] = draw.token;
    /* not logit - lse: at m = 1e4 lse would be rounded to 1e-3 */
    logp[row] = (draw.logit - draw.m) - logf(draw.s);
    entropy[row] = row_state_entropy(state);
}

template <class T>
static void launch(Draw *draws, const TileRows &E, const TileRows &W, const Sampling &sampling,
                   int C) {
    int row_tiles = ceil_div(sampling.R, T::ROWS);
    int blocks = row_tiles * ceil_div(sampling.V, WORDS);
    ALLOW_SHARED(T::SHARED, sample_kernel<T>);
    sample_kernel<T>
        <<<blocks, T::THREADS, T::SHARED, cuda.stream>>>(draws, E, W, sampling, C, row_tiles);
    CUDA_CHECK_LAUNCH();
}

static void head_sample(int *token, float *logp, float *entropy, const floatX *E,
                        const void *packed, const struct DecodeRows *rows, const uint32_t key[2],
                        const struct Head *head, int R, void *workspace) {
    const int C = head->C, V = head->V;
    if (R == 0) return;
    Draw *draws = (Draw *)workspace;
    bool greedy = head->inv_temperature == 0;
    Sampling sampling = {rows->position, rows->sample, rows->ordinal, {key[0], key[1]}, R, V,
                         greedy ? 1 : head->inv_temperature, greedy};
    TileRows hidden = tile_rows(E, (size_t)C, R);
    TileRows weight = tile_rows((const floatX *)packed, packed_stride(C), V);
    if (R <= FewRows::ROWS) launch<FewRows>(draws, hidden, weight, sampling, C);
    else if (R <= SomeRows::ROWS) launch<SomeRows>(draws, hidden, weight, sampling, C);
    else launch<ManyRows>(draws, hidden, weight, sampling, C);
    merge_kernel<<<ceil_div(R, MERGE_WARPS), MERGE_WARPS * WARP, 0, cuda.stream>>>(
        token, logp, entropy, draws, R, ceil_div(V, WORDS));
    CUDA_CHECK_LAUNCH();
}

/* ---- the next step --------------------------------------------------------------------------- */

static __global__ void advance_kernel(int *next, int *position, const int *token, int R) {
    int i = blockIdx.x * ADVANCE_THREADS + threadIdx.x;
    if (i >= R || position[i] < 0) return;
    next[i] = token[i];
    position[i]++;
}

static void decode_advance(const struct DecodeRows *rows, const int *token, int R) {
    if (R == 0) return;
    advance_kernel<<<ceil_div(R, ADVANCE_THREADS), ADVANCE_THREADS, 0, cuda.stream>>>(
        rows->token, rows->position, token, R);
    CUDA_CHECK_LAUNCH();
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)shape->R * ceil_div(shape->V, WORDS) * sizeof(Draw);
}

static void fill(struct Ops *ops) {
    ops->head_sample = head_sample;
    ops->decode_advance = decode_advance;
}

extern const struct KernelFile PER_TYPE(cuda_sample) = {"sample", fill, workspace_bytes};
