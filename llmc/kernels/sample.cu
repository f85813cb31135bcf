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

   Among words with one maximum m, the winner has the largest e^(z - m) / -log u, and e^(z - m) has
   been computed for the sums. So a logit costs one logarithm, of u, and only a winner a second one.
   What -log u must be is exact relative to itself, also near u = 1: there z - log(-log u) decides,
   and there the noise is largest. With t = 1 - u, which is a float:

       t < 1/4    t times a polynomial of degree 4 in t, minimax: relative error 6.1e-7
       else       lg2.approx, absolute error 2^-22 of at least 0.415: 5.8e-7

   That is the error of the noise, absolute. Over all 2^23 values of u, with the rounding of every
   step, and with lg2.approx as wrong as it may be: at most 7.4e-7, for noise from -2.81 to 16.64.
   (With lg2.approx alone 0.8 at u = 1 - 2^-22, and infinite or NaN beyond. With logf 8e-8, for more
   instructions.) Two scores are compared right if they differ by 3e-6: twice this error, and those
   of e^(z - m), at most 1e-6 where a word can win, and of 1 / x.

   Noise is not computed where a warp's rows are all empty or beyond R.

   All heights cut a row of the vocabulary in the same way and add in the same order, so a row's
   bits do not depend on the other rows. Bytes: W once from memory, again from L2 for each further
   row tile. Flop: 2 R C V, and about 50 instructions of statistics and noise per logit (sm_90a). */
#include "tile_product.cuh"
#include "row_state.cuh"
#include <limits.h>

enum { WORDS = 128, MERGE_WARPS = 8, ADVANCE_THREADS = 256 };

/* rows, columns, a warp's rows and columns, split, depth, stages. Two blocks or more share a
   multiprocessor, so that one multiplies while the other draws. */
typedef Tile<16, WORDS, 16, 32, 1, 1, 4> FewRows;
typedef Tile<64, WORDS, 64, 32, 1, 1, 3> SomeRows;
typedef Tile<128, WORDS, 64, 32, 1, 1, 2> ManyRows;

/* The statistics and the winner among some of a row's words. */
struct Draw {
    float m, s, w;   /* of RowState */
    float score;     /* of the winner: z - log(-log u), or z when greedy. Never NaN */
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

/* rng_uniform of rng.h: the upper 23 bits become the fraction of a float in [1, 2), less 1 - 2^-24.
   All of it is exact. */
static __device__ __forceinline__ float uniform(uint32_t word) {
    return __uint_as_float(0x3f800000u + (word >> 9)) - 0x0.ffffffp0f;
}

/* -log2 u; see above. */
static __device__ __forceinline__ float minus_log2(float u) {
    float t = 1.0f - u;
    float p = fmaf(fmaf(0.51374847f, t, 0.30503643f), t, 0.48617405f);
    p = fmaf(fmaf(p, t, 0.72117668f), t, 1.44269586f);
    return t < 0.25f ? t * p : -log2_approx(u);
}

/* The draw among one row's words in this warp, of which a lane has z and word [COUNT], from word
   `column` on. All four lanes of the row get the result. */
template <int COUNT>
static __device__ __forceinline__ Draw draw_row(const float *z, const uint32_t *word, int column,
                                                const Sampling &sampling) {
    const float LOG2_E = 1.44269504f;
    float m = -INFINITY, s = 0, w = 0;
#pragma unroll
    for (int c = 0; c < COUNT; c++) m = fmaxf(m, z[c]);
    m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, 1));
    m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, 2));
    const float base = m == -INFINITY ? 0.0f : m; /* all masked: each weighs 0 */
    /* `score` here: z when greedy, else e^(z - m) / -log2 u. The first token is in range: if no
       word has a score, for NaN is none, it stays. */
    Draw best = {m, 0, 0, sampling.greedy ? -INFINITY : 0.0f, -INFINITY,
                 min_int(column, sampling.V - 1)};
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        float centred = z[c] - base, e = exp2_approx(centred * LOG2_E), score = z[c];
        s += e;
        w = fmaf(e, fmaxf(centred, -1e30f), w); /* not 0 * -inf */
        if (!sampling.greedy) score = e * reciprocal_approx(minus_log2(uniform(word[c])));
        if (score > best.score) { /* of equal scores the first, smaller v stays */
            best.score = score, best.logit = z[c];
            best.token = column + lane_column_step(c);
        }
    }
    best.s = s, best.w = w;
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
        Draw other = draw_shuffle(best, lanes);
        best.s += other.s, best.w += other.w;
        take_winner(&best, other.score, other.logit, other.token);
    }
    if (!sampling.greedy)
        best.score = best.score > 0 ? m + logf(best.score * LOG2_E) : -INFINITY;
    return best;
}

/* What a row's draws are counted by, and whether it draws. */
struct Counter {
    uint32_t position, sample, ordinal, used;
};

/* counter [ROWS] in shared memory. */
template <class T>
static __device__ __forceinline__ void load_counters(Counter *counter, int first_row,
                                                     const Sampling &sampling) {
    for (int i = threadIdx.x; i < T::ROWS; i += T::THREADS) {
        const int row = first_row + i;
        Counter own = {0, 0, 0, 0};
        if (row < sampling.R) {
            int position = sampling.position[row];
            own = Counter{(uint32_t)position + 1, sampling.sample[row], sampling.ordinal[row],
                          position >= 0};
        }
        counter[i] = own;
    }
}

/* z [LANE_COLUMNS] of a lane's r-th row. Only the last tile has words to mask. The scaling is never
   fused into what uses z, which would change its bits. */
template <class T>
static __device__ __forceinline__ void lane_logits(float *z, TileSums<T> *sum, int r, int first,
                                                   const Sampling &sampling) {
#pragma unroll
    for (int c = 0; c < T::LANE_COLUMNS; c++)
        z[c] = __fmul_rn(*lane_sum(sum, r, c), sampling.inv_temperature);
    if (first + T::COLUMNS <= sampling.V) return;
#pragma unroll
    for (int c = 0; c < T::LANE_COLUMNS; c++)
        if (first + lane_column<T>(c) >= sampling.V) z[c] = -INFINITY;
}

/* Turns a warp's sums into draws, one for each of its rows and this warp's words:
   part [ROWS][WARPS_ACROSS] in shared memory. Words from V on are masked. Rows that draw nothing
   may get none. */
template <class T>
static __device__ __forceinline__ void draw_tile(Draw *part, TileSums<T> *sum,
                                                 const Counter *counters, int first,
                                                 const Sampling &sampling) {
    int column = first + lane_column<T>(0);
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r += 2) {
        const Counter own = counters[lane_row<T>(r + threadIdx.x % 2)];
        if (!__any_sync(FULL_WARP, own.used)) continue;
        uint32_t counter[3] = {own.position, own.sample, own.ordinal}, word[2][T::LANE_COLUMNS];
        if (!sampling.greedy)
#pragma unroll
            for (int c = 0; c < T::LANE_COLUMNS; c += 2)
                draw_words(word[0] + c, word[1] + c, counter, column + lane_column_step(c),
                           sampling.key);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float z[T::LANE_COLUMNS];
            lane_logits(z, sum, r + h, first, sampling);
            Draw draw = draw_row<T::LANE_COLUMNS>(z, word[h], column, sampling);
            if (threadIdx.x % 4 == 0)
                part[lane_row<T>(r + h) * T::WARPS_ACROSS + tile_warp_across<T>()] = draw;
        }
    }
}

/* Bytes of shared memory: the stages, and the rows' counters. */
template <class T> static constexpr int shared_bytes() {
    return T::SHARED + T::ROWS * (int)sizeof(Counter);
}

template <class T>
static __global__ void __launch_bounds__(T::THREADS, 2)
    sample_kernel(Draw *draws, TileRows E, TileRows W, Sampling sampling, int C, int row_tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x % row_tiles * T::ROWS;
    int tile = blockIdx.x / row_tiles, tiles = ceil_div(sampling.V, WORDS);
    TileProduct product = {E, W, NULL, first_row, tile * WORDS, C, shared};
    TileSums<T> sum;
    Counter *counters = (Counter *)(shared + T::SHARED);
    if (first_row == 0) tile_prefetch_y<T>(product);
    await_previous();
    tile_product_begin<T>(product);
    load_counters<T>(counters, first_row, sampling);
    tile_product(&sum, product);
    __syncthreads();
    Draw *part = (Draw *)shared;
    draw_tile(part, &sum, counters, tile * WORDS, sampling);
    __syncthreads();
    int row = threadIdx.x;
    if (row >= T::ROWS || !counters[row].used) return;
    Draw draw = part[row * T::WARPS_ACROSS];
#pragma unroll
    for (int across = 1; across < T::WARPS_ACROSS; across++)
        draw = draw_merge(draw, part[row * T::WARPS_ACROSS + across]);
    draws[(size_t)(first_row + row) * tiles + tile] = draw;
}

/* ---- merging --------------------------------------------------------------------------------- */

static __device__ __forceinline__ Draw draw_none() {
    return Draw{-INFINITY, 0, 0, -INFINITY, -INFINITY, INT_MAX};
}

/* A block merges a row's tiles: each thread every 256th, in order; then the lanes, then the warps.
   A row that is empty gets zeros. */
static __global__ void __launch_bounds__(MERGE_WARPS * WARP)
    merge_kernel(int *token, float *logp, float *entropy, const Draw *draws, const int *position,
                 int tiles) {
    __shared__ Draw of_warp[MERGE_WARPS];
    const int row = blockIdx.x, lane = threadIdx.x % WARP;
    await_previous();
    const bool empty = position[row] < 0;
    Draw draw = draw_none();
    draws += (size_t)row * tiles;
    for (int tile = threadIdx.x; tile < tiles && !empty; tile += MERGE_WARPS * WARP)
        draw = draw_merge(draw, draws[tile]);
    for (int lanes = 1; lanes < WARP; lanes *= 2)
        draw = draw_merge(draw, draw_shuffle(draw, lanes));
    if (lane == 0) of_warp[threadIdx.x / WARP] = draw;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < MERGE_WARPS; warp++) draw = draw_merge(draw, of_warp[warp]);
    RowState state = {draw.m, draw.s, draw.w, 0, 0};
    token[row] = empty ? 0 : draw.token;
    /* not logit - lse: at m = 1e4 lse would be rounded to 1e-3 */
    logp[row] = empty ? 0 : (draw.logit - draw.m) - logf(draw.s);
    entropy[row] = empty ? 0 : row_state_entropy(state);
}

template <class T>
static void launch(Draw *draws, const TileRows &E, const TileRows &W, const Sampling &sampling,
                   int C) {
    int row_tiles = ceil_div(sampling.R, T::ROWS);
    int blocks = row_tiles * ceil_div(sampling.V, WORDS);
    ALLOW_SHARED(shared_bytes<T>(), sample_kernel<T>);
    LAUNCH_DEPENDENT(blocks, T::THREADS, shared_bytes<T>(), sample_kernel<T>, draws, E, W,
                     sampling, C, row_tiles);
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
    LAUNCH_DEPENDENT(R, MERGE_WARPS * WARP, 0, merge_kernel, token, logp, entropy, draws,
                     rows->position, ceil_div(V, WORDS));
}

/* ---- the next step --------------------------------------------------------------------------- */

static __global__ void advance_kernel(int *next, int *position, const int *token, int R) {
    await_previous();
    int i = blockIdx.x * ADVANCE_THREADS + threadIdx.x;
    if (i >= R || position[i] < 0) return;
    next[i] = token[i];
    position[i]++;
}

static void decode_advance(const struct DecodeRows *rows, const int *token, int R) {
    if (R == 0) return;
    LAUNCH_DEPENDENT(ceil_div(R, ADVANCE_THREADS), ADVANCE_THREADS, 0, advance_kernel, rows->token,
                     rows->position, token, R);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)shape->R * ceil_div(shape->V, WORDS) * sizeof(Draw);
}

static void fill(struct Ops *ops) {
    ops->head_sample = head_sample;
    ops->decode_advance = decode_advance;
}

extern const struct KernelFile PER_TYPE(cuda_sample) = {"sample", fill, workspace_bytes};
