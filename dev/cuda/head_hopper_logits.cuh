/* The product z = E W^T on Hopper, reduced in registers to the statistics of each row; on wish each
   tile leaves bf16 e^(z-m) behind, 2 bytes a logit.

   u is the sum as the tensor cores leave it, z = u / temperature, m the row's largest u so far,
   c = log2(e) / temperature. Of e = 2^(c (u - m)) and u - m come s, w, q and r
   (row_state_base2.cuh). 9 instructions a logit: maximum, u - m, c (u - m), e, s, e (u - m), w, q,
   r.

   The four lanes of a row agree on its maximum in every tile (two shuffles), so that their sums are
   relative to the same m. Words from V on are made -1e30 and weigh 0.

   A unit of work is 256 rows (a cluster's) and a part of the vocabulary, which the cluster walks
   tile by tile with the states in registers; at its end one state per row and part is written. The
   parts depend on V only, so a row's bits depend on nothing but itself and W. Units are in an order
   in which the 66 clusters of a device share what is in its second cache level:

                 part 0   part 1  ..            8 row pairs (2048 rows: 17 MB at C = 4096) pass
       pair 0      0        8                   through all of W before the next 8 begin
       pair 1      1        9
       ..
       pair 7      7        15 */
#pragma once
#include "head_hopper.cuh"
#include "row_state_base2.cuh"

enum {
    PARTS = 16,
    PAIRS_TOGETHER = 8,
    PIECE = 64,                            /* columns that are stored at a time */
    PIECE_BYTES = GROUP_ROWS * LINE,
    STORE_BYTES = 2 * 2 * PIECE_BYTES,     /* two groups, two buffers each */
    LOGITS_SHARED = RING_BYTES + BARRIER_BYTES,
    LOGITS_STORE_SHARED = RING_BYTES + STORE_BYTES + BARRIER_BYTES
};
#define MASKED (-1e30f)

struct Logits {
    CUtensorMap E, W;    /* [n,C] gathered, [V,C]; boxes of 128 rows x 64 */
    CUtensorMap e;       /* [n,V] bf16 e^(z-m), boxes of 64 x 64: where it is stored, if it is */
    float *offset;       /* [tiles][n] that m, in units of u */
    const int *target;   /* [n] */
    float *target_sum;   /* [n] u of the target */
    RowState *states;    /* [parts][n], of u */
    int n, V, stages, tiles, parts;
    float c;             /* log2(e) / temperature */
};

struct LogitsUnit {
    int row, part, tile, end; /* the pair's first row; tiles [tile, end) of the part */
};

static __host__ __device__ __forceinline__ int logits_units(const Logits &x) {
    return ceil_div(x.n, PAIR_ROWS) * x.parts;
}

static __device__ __forceinline__ LogitsUnit logits_unit(const Logits &x, int unit) {
    int pairs = ceil_div(x.n, PAIR_ROWS), whole = PAIRS_TOGETHER * x.parts;
    int first = unit / whole * PAIRS_TOGETHER, within = unit % whole;
    int together = min_int(PAIRS_TOGETHER, pairs - first), part = within / together;
    return LogitsUnit{(first + within % together) * PAIR_ROWS, part, x.tiles * part / x.parts,
                      x.tiles * (part + 1) / x.parts};
}

#ifdef HOPPER_CODE

/* ---- the producer ---------------------------------------------------------------------------- */

static __device__ __forceinline__ void logits_produce(const Logits &x, Ring ring) {
    int rank = cluster_rank(), half = BLOCK_COLUMNS / 2;
    for (int u = blockIdx.x / 2; u < logits_units(x); u += gridDim.x / 2) {
        LogitsUnit unit = logits_unit(x, u);
        for (int tile = unit.tile; tile < unit.end; tile++) {
#pragma unroll 1
            for (int k = 0; k < x.stages; k++) {
                uint64_t *full = &ring.full[ring.stage];
                ring_fill(ring, STAGE_BYTES);
                tma_load_2d(ring_a(ring), &x.E, k * STAGE_K, unit.row + rank * BLOCK_ROWS, full);
                tma_load_2d_multicast(ring_b(ring) + rank * half * LINE, &x.W, k * STAGE_K,
                                      tile * BLOCK_COLUMNS + rank * half, full, 3);
                ring_next(&ring);
            }
        }
    }
}

/* ---- a tile's sums --------------------------------------------------------------------------- */

/* Sum i of a lane is of its row i / 2 % 2 and of column 8 (i / 4) + i % 2 + 2 (lane % 4). */
static __device__ __forceinline__ int lane_first_column() { return threadIdx.x % 4 * 2; }

static __device__ __forceinline__ void mask_words(float *sum, int words) {
#pragma unroll
    for (int i = 0; i < SUMS; i++)
        if (i / 4 * 8 + i % 2 + lane_first_column() >= words) sum[i] = MASKED;
}

/* Keeps the target's sum if it is among the lane's; `column` is the target's in the tile. */
template <int ROW>
static __device__ __forceinline__ void keep_target(float *target_sum, const float *sum,
                                                   int column) {
    int own = column - lane_first_column();
#pragma unroll
    for (int j = 0; j < SUMS / 4; j++) {
        if (own == j * 8) *target_sum = sum[j * 4 + ROW * 2];
        if (own == j * 8 + 1) *target_sum = sum[j * 4 + ROW * 2 + 1];
    }
}

/* The tile's logits of one of the lane's rows into its state; where STORE, e^(z-m) in the place of
   the sums. */
template <int ROW, bool STORE>
static __device__ __forceinline__ void reduce_row(RowState *state, float *sum, float c) {
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < SUMS / 4; j++)
        top = fmaxf(top, fmaxf(sum[j * 4 + ROW * 2], sum[j * 4 + ROW * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
    *state = base2_move(*state, fmaxf(state->m, top), c);
    float m = state->m;
#pragma unroll
    for (int i = ROW * 2; i < SUMS; i += i % 2 == 0 ? 1 : 3) {
        float x = sum[i] - m, e = exp2_approx(x * c), moment = e * x;
        state->s += e;
        state->w += moment;
        state->q = fmaf(e, e, state->q);
        state->r = fmaf(e, moment, state->r);
        if (STORE) sum[i] = e;
    }
}

/* The group's 64 x 256 numbers to the matrix e, 64 columns at a time through one of two buffers,
   which has the layout of a TMA tile. */
static __device__ __forceinline__ void store_tile(const Logits &x, const float *sum,
                                                  unsigned char *buffers, int row, int column) {
    int thread = threadIdx.x % GROUP, lane = threadIdx.x % WARP, id = 1 + warp_group();
    int line = thread / WARP * 16 + lane / 8 % 2 * 8 + lane % 8, chunk = lane / 16;
#pragma unroll
    for (int piece = 0; piece < BLOCK_COLUMNS / PIECE; piece++) {
        unsigned char *buffer = buffers + piece % 2 * PIECE_BYTES;
        if (thread == 0) tma_store_wait<1>();
        barrier_sync(id, GROUP);
#pragma unroll
        for (int j = 0; j < PIECE / 8; j += 2) {
            const float *from = sum + (piece * PIECE / 8 + j) * 4;
            uint32_t pairs[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                pairs[i] = pack_pair<__nv_bfloat16>(from[2 * i], from[2 * i + 1]);
            stmatrix_x4(buffer + line * LINE + ((j + chunk) ^ line % 8) * 16, pairs);
        }
        fence_async_shared();
        barrier_sync(id, GROUP);
        if (thread == 0) {
            tma_store_2d(&x.e, column + piece * PIECE, row, buffer);
            tma_store_commit();
        }
    }
}

/* Sums the four lanes of a row, who have the same maximum, and writes its state. */
static __device__ __forceinline__ void store_state(const Logits &x, RowState state, int part,
                                                   int row) {
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
        state.s += __shfl_xor_sync(FULL_WARP, state.s, lanes);
        state.w += __shfl_xor_sync(FULL_WARP, state.w, lanes);
        state.q += __shfl_xor_sync(FULL_WARP, state.q, lanes);
        state.r += __shfl_xor_sync(FULL_WARP, state.r, lanes);
    }
    if (threadIdx.x % 4 == 0 && row < x.n) x.states[(size_t)part * x.n + row] = state;
}

/* ---- the consumers --------------------------------------------------------------------------- */

template <int ROW, bool STORE>
static __device__ __forceinline__ void logits_row(const Logits &x, RowState *state, float *sum,
                                                  int row, int target, int tile) {
    unsigned column = (unsigned)(target - tile * BLOCK_COLUMNS);
    if (row < x.n && column < BLOCK_COLUMNS)
        keep_target<ROW>(x.target_sum + row, sum, (int)column);
    reduce_row<ROW, STORE>(state, sum, x.c);
    if (STORE && row < x.n && threadIdx.x % 4 == 0)
        x.offset[(size_t)tile * x.n + row] = state->m;
}

template <bool STORE>
static __device__ __forceinline__ void logits_consume(const Logits &x, Ring ring,
                                                      unsigned char *buffers) {
    float sum[SUMS];
    buffers += warp_group() * 2 * PIECE_BYTES;
    ring_hold_back(ring, x.stages); /* every unit has a tile */
    for (int u = blockIdx.x / 2; u < logits_units(x); u += gridDim.x / 2) {
        LogitsUnit unit = logits_unit(x, u);
        int block_row = unit.row + (int)cluster_rank() * BLOCK_ROWS;
        int row = block_row + first_lane_row();
        int target = x.target[min_int(row, x.n - 1)], target8 = x.target[min_int(row + 8, x.n - 1)];
        RowState state = row_state_empty(), state8 = row_state_empty();
        for (int tile = unit.tile; tile < unit.end; tile++) {
            int column = tile * BLOCK_COLUMNS;
            multiply(sum, &ring, x.stages);
            if (column + BLOCK_COLUMNS > x.V) mask_words(sum, x.V - column);
            logits_row<0, STORE>(x, &state, sum, row, target, tile);
            logits_row<1, STORE>(x, &state8, sum, row + 8, target8, tile);
            if (STORE)
                store_tile(x, sum, buffers, block_row + warp_group() * GROUP_ROWS, column);
        }
        store_state(x, state, unit.part, row);
        store_state(x, state8, unit.part, row + 8);
    }
    if (STORE && threadIdx.x % GROUP == 0) tma_store_wait_written<0>();
}

#endif

template <bool STORE>
static __global__ void __launch_bounds__(HOPPER_THREADS, 1)
logits_kernel(const __grid_constant__ Logits x) {
#ifdef HOPPER_CODE
    extern __shared__ __align__(1024) unsigned char shared[];
    Ring ring = ring_open(shared, RING_BYTES + (STORE ? STORE_BYTES : 0));
    if (threadIdx.x >= PRODUCER) {
        registers_release<PRODUCER_REGISTERS>();
        if (threadIdx.x == PRODUCER) logits_produce(x, ring);
    } else {
        registers_take<CONSUMER_REGISTERS>();
        logits_consume<STORE>(x, ring, shared + RING_BYTES);
    }
    ring_close();
#endif
}

/* ---- merging the parts ----------------------------------------------------------------------- */

/* What is known of the n rows, device arrays. The first four come to the host. */
struct RowResults {
    float *logp, *entropy, *q, *qlog;
    float *maximum, *log2_s; /* log2 p = log2 e + c (the tile's offset - maximum) - log2_s */
};

/* A thread per row, parts in order. */
static __global__ void __launch_bounds__(COPIERS)
merge_states_kernel(RowResults to, const RowState *states, const float *target_sum, int n,
                    int parts, float c) {
    int row = blockIdx.x * COPIERS + threadIdx.x;
    if (row >= n) return;
    RowState x = states[row];
    for (int part = 1; part < parts; part++)
        x = base2_merge(x, states[(size_t)part * n + row], c);
    float target = (target_sum[row] - x.m) * (c * LN_2);
    to.maximum[row] = x.m;
    to.log2_s[row] = log2f(x.s);
    x = base2_to_e(x, c * LN_2);
    to.logp[row] = target - logf(x.s);
    to.entropy[row] = row_state_entropy(x);
    to.q[row] = row_state_q(x);
    to.qlog[row] = row_state_qlog(x);
}

/* ---- host ------------------------------------------------------------------------------------ */

static inline int logits_parts(int V) { return min_int(PARTS, ceil_div(V, BLOCK_COLUMNS)); }

/* Clusters of two blocks: as many as there are units, or as fit the device. */
static inline int count_clusters(int units) {
    return max_int(1, min_int(units, cuda.multiprocessors / 2));
}

/* A launch of `clusters` clusters of two blocks. The attribute is the caller's, static as long as
   the launch. */
static inline cudaLaunchConfig_t pairs_config(cudaLaunchAttribute *attribute, int clusters,
                                              int shared) {
    cudaLaunchConfig_t config = {};
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = 2;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    config.gridDim = dim3(2 * clusters);
    config.blockDim = dim3(HOPPER_THREADS);
    config.dynamicSmemBytes = shared;
    config.stream = cuda.stream;
    config.attrs = attribute;
    config.numAttrs = 1;
    return config;
}

/* E [n,C] gathered with rows of copied_stride(C), W as readable() gives it. */
static inline Logits logits_of(const narrow *E, const narrow *W, const int *target,
                               float *target_sum, RowState *states, int n, int C, int V,
                               float inv_temperature) {
    Logits x = {};
    int stride = copied_stride(C);
    x.E = tensor_map_2d(E, n, stride, stride, BLOCK_ROWS, STAGE_K);
    x.W = tensor_map_2d(W, V, stride, stride, BLOCK_COLUMNS / 2, STAGE_K);
    x.target = target, x.target_sum = target_sum, x.states = states;
    x.n = n, x.V = V;
    x.stages = ceil_div(C, STAGE_K), x.tiles = ceil_div(V, BLOCK_COLUMNS);
    x.parts = logits_parts(V);
    x.c = inv_temperature * LOG2_E;
    return x;
}

static inline size_t states_bytes(int n, int V) {
    return align_up((size_t)n * logits_parts(V) * sizeof(RowState), 256);
}
