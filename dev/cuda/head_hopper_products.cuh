/* The two gradient products on Hopper, from bf16 e = 2^(c (u-m)) and an offset m for each row and
   tile of 256 words. dz is never stored: it is rebuilt in registers, where wgmma takes its left
   operand from.

       dz = p (k0 + k1 log p) + a 1[y],    p = e P,   P = 2^(c (m - M)) / s of the row and tile
          = e (f + g log2 e) + a 1[y],     f = P (k0 + k1 ln P),   g = P k1 ln 2

   A small kernel writes (f, g), 8 bytes for 256 logits. An element costs a shift, a maximum, a
   logarithm, a multiply-add, a product and half a conversion.

   dE [rows,C] = dz W                               dW [V,C] += dz^T hidden

     A: e, 128 rows x 64 words a stage                A: e, 64 rows x 128 words a stage, read
        ldmatrix                                         transposed (ldmatrix.trans)
     B: W, 64 words x 256 columns                     B: hidden, 64 rows x 256 columns
     (f, g) of a lane's two rows, from tile to tile   (f, g) of the stage's rows, by TMA: 512 bytes

   B's rows are contiguous in its column: the other way round from the logits product (TRANS_B).

   What bf16 does to it. e has a relative error of at most 2^-9, and so have p and, absolutely,
   log p: ln(e (1 + d)) = ln e + d. So
       |error of dz| <= 2^-9 (p |k0 + k1 log p| + p |k1|) + the rounding of dz to bf16, 2^-9 |dz|,
   the last of which every version has. A row's largest e is 1 and exact, so the cancellation of
   a (1 - p) at a confident target keeps its digits, and the label is added before dz is rounded.
   Where e underflows, p < 2^-126: it is taken for 2^-126.

   The target's word is met once in a row's V: a warp votes whether one of its rows has it in this
   stage, and only then looks. */
#pragma once
#include "head_hopper_logits.cuh"

enum {
    B_BOX_BYTES = STAGE_K * LINE,     /* 64 of K x 64 columns */
    FACTOR_BYTES = STAGE_K * 8, FACTOR_PLACE = 1024,
    FACTOR_ROW = 32,                  /* floats of a row of the map of (f, g) */
    PRODUCTS_SHARED = RING_BYTES + STAGES * FACTOR_PLACE + BARRIER_BYTES,
    TILE_STAGES = BLOCK_COLUMNS / STAGE_K
};

struct Products {
    CUtensorMap e_rows;     /* e [n,stride], boxes of 128 x 64 */
    CUtensorMap e_words;    /* e, boxes of 64 x 64 */
    CUtensorMap W, hidden;  /* [V,C], [n,C], boxes of 64 x 64 */
    CUtensorMap factor_map; /* factor, in rows of 32 floats, boxes of 4 */
    const float2 *factor;   /* [tiles][rows_padded] f, g */
    const int *target;      /* [n] */
    const float *at_target; /* [n] dJ/dlogp */
    float *partial;         /* [splits][n][C] dE, summed over a part of the vocabulary each */
    float *dW;              /* [V,C] */
    int n, rows_padded, C, V, tiles, splits, column_tiles;
    float inv_temperature;
};

/* A cluster's work in the product for dE: a pair of blocks' rows, 256 columns, some tiles. */
struct RowsUnit {
    int row, column, split, first, end; /* stages [first, end) of 64 words */
};
/* In the product for dW: a tile of words, 256 columns, all rows. */
struct WordsUnit {
    int tile, column;
};

static __host__ __device__ __forceinline__ int rows_units(const Products &x) {
    return x.rows_padded / PAIR_ROWS * x.column_tiles * x.splits;
}
static __host__ __device__ __forceinline__ int words_units(const Products &x) {
    return x.tiles * x.column_tiles;
}
/* Columns change fastest: the clusters that run together share e and W (or hidden). */
static __device__ __forceinline__ RowsUnit rows_unit(const Products &x, int unit) {
    int pairs = x.rows_padded / PAIR_ROWS, split = unit / x.column_tiles / pairs;
    int first = x.tiles * split / x.splits * TILE_STAGES;
    int end = x.tiles * (split + 1) / x.splits * TILE_STAGES;
    return RowsUnit{unit / x.column_tiles % pairs * PAIR_ROWS,
                    unit % x.column_tiles * BLOCK_COLUMNS, split, first,
                    min_int(end, ceil_div(x.V, STAGE_K))};
}
static __device__ __forceinline__ WordsUnit words_unit(const Products &x, int unit) {
    return WordsUnit{unit / x.column_tiles, unit % x.column_tiles * BLOCK_COLUMNS};
}

#ifdef HOPPER_CODE

/* ---- producers ------------------------------------------------------------------------------- */

/* This block's half of B, to both blocks: columns [column, column + 256) at k. */
static __device__ __forceinline__ void fetch_b(const Ring &ring, const CUtensorMap *map,
                                               int column, int k) {
    int rank = cluster_rank();
    for (int box = 2 * rank; box < 2 * rank + 2; box++)
        tma_load_2d_multicast(ring_b(ring) + box * B_BOX_BYTES, map, column + box * STAGE_K, k,
                              &ring.full[ring.stage], 3);
}

static __device__ __forceinline__ void rows_produce(const Products &x, Ring ring) {
    int block_row = cluster_rank() * BLOCK_ROWS;
    for (int u = blockIdx.x / 2; u < rows_units(x); u += gridDim.x / 2) {
        RowsUnit unit = rows_unit(x, u);
#pragma unroll 1
        for (int k = unit.first; k < unit.end; k++) {
            ring_fill(ring, STAGE_BYTES);
            tma_load_2d(ring_a(ring), &x.e_rows, k * STAGE_K, unit.row + block_row,
                        &ring.full[ring.stage]);
            fetch_b(ring, &x.W, unit.column, k * STAGE_K);
            ring_next(&ring);
        }
    }
}

static __device__ __forceinline__ void words_produce(const Products &x, Ring ring) {
    for (int u = blockIdx.x / 2; u < words_units(x); u += gridDim.x / 2) {
        WordsUnit unit = words_unit(x, u);
        int word = unit.tile * BLOCK_COLUMNS + (int)cluster_rank() * BLOCK_ROWS;
#pragma unroll 1
        for (int k = 0; k < x.n; k += STAGE_K) {
            uint64_t *full = &ring.full[ring.stage];
            ring_fill(ring, STAGE_BYTES + FACTOR_BYTES);
            tma_load_2d(ring_a(ring), &x.e_words, word, k, full);
            tma_load_2d(ring_a(ring) + B_BOX_BYTES, &x.e_words, word + GROUP_ROWS, k, full);
            tma_load_2d(ring.stages + RING_BYTES + ring.stage * FACTOR_PLACE, &x.factor_map, 0,
                        (int)(((size_t)unit.tile * x.rows_padded + k) * 2 / FACTOR_ROW), full);
            fetch_b(ring, &x.hidden, unit.column, k);
            ring_next(&ring);
        }
    }
}

/* ---- dz in registers ------------------------------------------------------------------------- */

/* e below 2^-126 counts as 2^-126, which is nothing beside e = 1; so does NaN, of which f and g
   tell unless the row has no coefficients. */
static __device__ __forceinline__ float rebuild(float e, float f, float g) {
    e = fmaxf(e, 0x1p-126f);
    return e * fmaf(g, log2_approx(e), f);
}

/* wgmma's left operand for 64 of K: for each step of 16, what ldmatrix_x4 left, as dz. */
typedef uint32_t Fragments[STAGE_K / STEP_K][4];

/* dz of 64 rows, K along the words. A lane has two rows, g and g + 8. */
struct RowsOperand {
    const Products &x;
    int row;       /* the first */
    int target[2]; /* -1: none */
    float2 own[2]; /* factors of the current tile */

    __device__ __forceinline__ RowsOperand(const Products &x, int row) : x(x), row(row) {
#pragma unroll
        for (int r = 0; r < 2; r++) target[r] = row + 8 * r < x.n ? x.target[row + 8 * r] : -1;
    }

    __device__ __forceinline__ float label(int r) const {
        return row + 8 * r < x.n ? x.at_target[row + 8 * r] * x.inv_temperature : 0.0f;
    }

    /* column: of the targets, from the lane's first. */
    template <bool TARGET>
    __device__ __forceinline__ void convert(Fragments out, const int *column) const {
        float at_target[2] = {TARGET ? label(0) : 0.0f, TARGET ? label(1) : 0.0f};
#pragma unroll
        for (int i = 0; i < STAGE_K / STEP_K * 4; i++) {
            int step = i / 4, r = i % 2, place = step * STEP_K + i % 4 / 2 * 8;
            float2 e = unpack_pair<__nv_bfloat16>(out[step][i % 4]);
            float low = rebuild(e.x, own[r].x, own[r].y), high = rebuild(e.y, own[r].x, own[r].y);
            if (TARGET && column[r] == place) low += at_target[r];
            if (TARGET && column[r] == place + 1) high += at_target[r];
            out[step][i % 4] = pack_pair<narrow>(low, high);
        }
    }

    __device__ __forceinline__ void build(Fragments out, const Ring &ring, int k, bool first) {
        int lane = threadIdx.x % WARP, line = threadIdx.x / WARP * 16 + lane % 16;
        const unsigned char *e = ring_a(ring) + line * LINE;
        if (first || k % TILE_STAGES == 0)
            for (int r = 0; r < 2; r++)
                own[r] = x.factor[(size_t)(k / TILE_STAGES) * x.rows_padded + row + 8 * r];
#pragma unroll
        for (int step = 0; step < STAGE_K / STEP_K; step++)
            ldmatrix_x4(out[step], e + ((step * 2 + lane / 16) ^ line % 8) * 16);
        int place[2] = {target[0] - k * STAGE_K, target[1] - k * STAGE_K};
        bool met = (unsigned)place[0] < STAGE_K || (unsigned)place[1] < STAGE_K;
        int column[2] = {place[0] - lane_first_column(), place[1] - lane_first_column()};
        if (__any_sync(FULL_WARP, met)) convert<true>(out, column);
        else convert<false>(out, column);
    }
};

/* dz^T of 64 words, K along the rows. A lane has two words, g and g + 8, and of each 16 rows 2t,
   2t + 1, 2t + 8, 2t + 9. */
struct WordsOperand {
    const Products &x;
    int word; /* the warp's first */

    __device__ __forceinline__ WordsOperand(const Products &x, int word) : x(x), word(word) {}

    /* Whether a row of the stage has its target in these words. Each lane looks at two. */
    __device__ __forceinline__ bool target_met(int k) const {
        int row = k * STAGE_K + threadIdx.x % WARP;
        int first = row < x.n ? x.target[row] : -1;
        int second = row + WARP < x.n ? x.target[row + WARP] : -1;
        return __any_sync(FULL_WARP, (unsigned)(first - word) < 16 ||
                                         (unsigned)(second - word) < 16);
    }

    /* dJ/dlogp of a row whose target is this word, else 0. */
    __device__ __forceinline__ float label(int row, int own) const {
        return row < x.n && x.target[row] == own ? x.at_target[row] * x.inv_temperature : 0.0f;
    }

    template <bool TARGET>
    __device__ __forceinline__ void convert(Fragments out, const unsigned char *factors,
                                            int k) const {
        int lane = threadIdx.x % WARP, t = lane % 4;
#pragma unroll
        for (int i = 0; i < STAGE_K / STEP_K * 4; i++) {
            int step = i / 4, eight = i % 4 / 2, pair = step * 8 + eight * 4 + t;
            int own = word + lane / 4 + i % 2 * 8, row = k * STAGE_K + 2 * pair;
            float4 fg = *(const float4 *)(factors + pair / 8 * LINE + (pair % 8 ^ pair / 8) * 16);
            float2 e = unpack_pair<__nv_bfloat16>(out[step][i % 4]);
            float low = rebuild(e.x, fg.x, fg.y), high = rebuild(e.y, fg.z, fg.w);
            if (TARGET) low += label(row, own), high += label(row + 1, own);
            out[step][i % 4] = pack_pair<narrow>(low, high);
        }
    }

    __device__ __forceinline__ void build(Fragments out, const Ring &ring, int k, bool) {
        int lane = threadIdx.x % WARP, line = lane / 16 * 8 + lane % 8;
        int chunk = threadIdx.x % GROUP / WARP * 2 + lane / 8 % 2;
        const unsigned char *e = ring_a(ring) + warp_group() * B_BOX_BYTES + line * LINE;
        const unsigned char *factors = ring.stages + RING_BYTES + ring.stage * FACTOR_PLACE;
#pragma unroll
        for (int step = 0; step < STAGE_K / STEP_K; step++)
            ldmatrix_x4_trans(out[step], e + step * STEP_K * LINE + (chunk ^ line % 8) * 16);
        if (target_met(k)) convert<true>(out, factors, k);
        else convert<false>(out, factors, k);
    }
};

/* ---- the products ---------------------------------------------------------------------------- */

template <class Operand>
static __device__ __forceinline__ void multiply_stage(float *sum, Fragments fragments, Ring *ring,
                                                      Operand &operand, int k, bool first) {
    mbarrier_wait(&ring->full[ring->stage], ring->parity);
    operand.build(fragments, *ring, k, first);
    const unsigned char *b = ring_b(*ring);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < STAGE_K / STEP_K; step++)
        wgmma_rs<narrow, BLOCK_COLUMNS, 1>(
            sum, fragments[step], wgmma_descriptor_mn(b + step * STEP_K * LINE, B_BOX_BYTES),
            !first || step > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (!first) ring_release(ring, (ring->stage + STAGES - 1) % STAGES);
    ring_next(ring);
}

/* sum = dz B over stages [first, end). While one stage is multiplied the next one's dz is made, in
   other registers. */
template <class Operand>
static __device__ __forceinline__ void multiply_built(float *sum, Ring *ring, Operand &operand,
                                                      int first, int end) {
    Fragments even, odd;
    for (int k = first; k < end; k += 2) {
        multiply_stage(sum, even, ring, operand, k, k == first);
        if (k + 1 < end) multiply_stage(sum, odd, ring, operand, k + 1, false);
    }
    wgmma_wait<0>();
    wgmma_registers<SUMS>(sum);
    ring_release(ring, (ring->stage + STAGES - 1) % STAGES);
}

/* Stores a lane's sums of row ROW (of two) to `to`, the output's row at the tile's first column,
   of which `columns` exist; or adds them to what is there. */
template <int ROW, bool ADD>
static __device__ __forceinline__ void put_row(float *to, const float *sum, int columns,
                                               bool even) {
#pragma unroll
    for (int j = 0; j < SUMS / 4; j++) {
        int column = j * 8 + lane_first_column();
        float low = sum[j * 4 + ROW * 2], high = sum[j * 4 + ROW * 2 + 1];
        if (even && column < columns) {
            float2 *pair = (float2 *)(to + column);
            float2 old = ADD ? *pair : make_float2(0, 0);
            *pair = make_float2(old.x + low, old.y + high);
        } else if (!even) {
            if (column < columns) to[column] = ADD ? to[column] + low : low;
            if (column + 1 < columns) to[column + 1] = ADD ? to[column + 1] + high : high;
        }
    }
}

/* The same number, though the compiler does not know: what follows from it is computed again and
   takes no register meanwhile. */
static __device__ __forceinline__ int hidden_copy(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

static __device__ __forceinline__ void rows_consume(const Products &x, Ring ring) {
    float sum[SUMS];
    int lane_row = (int)cluster_rank() * BLOCK_ROWS + first_lane_row();
    RowsUnit first = rows_unit(x, blockIdx.x / 2);
    ring_hold_back(ring, first.end - first.first);
    for (int u = blockIdx.x / 2; u < rows_units(x); u += gridDim.x / 2) {
        RowsUnit unit = rows_unit(x, u);
        int row = unit.row + lane_row, columns = x.C - unit.column;
        RowsOperand operand(x, row);
        multiply_built(sum, &ring, operand, unit.first, unit.end);
        unit = rows_unit(x, hidden_copy(u)), row = unit.row + lane_row, columns = x.C - unit.column;
        float *to = x.partial + ((size_t)unit.split * x.n + row) * x.C + unit.column;
        if (row < x.n) put_row<0, false>(to, sum, columns, x.C % 2 == 0);
        if (row + 8 < x.n) put_row<1, false>(to + (size_t)8 * x.C, sum, columns, x.C % 2 == 0);
    }
}

static __device__ __forceinline__ void words_consume(const Products &x, Ring ring) {
    float sum[SUMS];
    int stages = ceil_div(x.n, STAGE_K), block_word = (int)cluster_rank() * BLOCK_ROWS;
    ring_hold_back(ring, stages);
    for (int u = blockIdx.x / 2; u < words_units(x); u += gridDim.x / 2) {
        WordsUnit unit = words_unit(x, u);
        int columns = x.C - unit.column, first = unit.tile * BLOCK_COLUMNS + block_word;
        WordsOperand operand(x, first + (int)threadIdx.x / WARP * 16);
        multiply_built(sum, &ring, operand, 0, stages);
        unit = words_unit(x, hidden_copy(u)), columns = x.C - unit.column;
        first = unit.tile * BLOCK_COLUMNS + block_word;
        int word = first + first_lane_row();
        float *to = x.dW + (size_t)word * x.C + unit.column;
        if (word < x.V) put_row<0, true>(to, sum, columns, x.C % 2 == 0);
        if (word + 8 < x.V) put_row<1, true>(to + (size_t)8 * x.C, sum, columns, x.C % 2 == 0);
    }
}

#endif

enum Side { ROWS, WORDS }; /* dE, dW */

template <enum Side SIDE>
static __global__ void __launch_bounds__(HOPPER_THREADS, 1)
products_kernel(const __grid_constant__ Products x) {
#ifdef HOPPER_CODE
    extern __shared__ __align__(1024) unsigned char shared[];
    Ring ring = ring_open(shared, RING_BYTES + STAGES * FACTOR_PLACE);
    if (threadIdx.x >= PRODUCER) {
        registers_release<PRODUCER_REGISTERS>();
        if (threadIdx.x == PRODUCER && SIDE == ROWS) rows_produce(x, ring);
        if (threadIdx.x == PRODUCER && SIDE == WORDS) words_produce(x, ring);
    } else {
        registers_take<CONSUMER_REGISTERS>();
        if (SIDE == ROWS) rows_consume(x, ring);
        else words_consume(x, ring);
    }
    ring_close();
#endif
}
