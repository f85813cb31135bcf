/* Scoring: log-probability, entropy, Q and QL of n tokens, without the n x V logits.

       z = E W^T / temperature,     logp = (z_y - m) - ln s,     H, Q, QL: row_state.cuh

   Rows are gathered on the way into shared memory. A block takes 128 rows and walks a fixed part of
   the vocabulary, tile by tile. Each lane keeps the states of its own 8 rows in registers all the
   way, so what leaves the multiprocessor is one state per row, part and warp across:

                     W [V,C], cut into at most 16 parts (blockIdx.y)
                     | part 0               | part 1 ..
                     | 256 | 256 | 256 | .. |
          rows  128  | --- block (0,0) ---> | --- block (0,1) --->      a block: 2 x 4 warps, each
          of E  128  | --- block (1,0) ---> | ..                        with 64 x 64 sums

   The first copies of the next tile are started before a tile's logits are reduced. A second kernel
   merges a row's 64 states in a fixed order. The number of parts depends on V only, so neither the
   device nor other rows change a row's bits.

   Flop: 2 n V C. Bytes: W once from memory, since the blocks of one part run side by side; from L2,
   384 rows for each tile of 128 x 256 logits, which is why it is that large. doc/head.md has the
   numbers. */
#include <stdlib.h>
#include "tile_product.cuh"
#include "row_state.cuh"

enum { PARTS = 16, ROWS = 128, WORDS = 256, MERGE_WARPS = 4 };

/* Where a block may have 144 KB of shared memory (A100, Hopper), and where it may have 99. */
typedef Tile<ROWS, WORDS, 64, 64, 1, 1, 3> Deep;
typedef Tile<ROWS, WORDS, 64, 64, 1, 1, 2> Shallow;

struct Scoring {
    TileRows E, W;
    const int *row, *target;
    RowState *states;      /* [n][parts of all warps] */
    float *target_logit;   /* [n] */
    int n, C, V;
    float inv_temperature;
};

/* The states of a row: one per part of the vocabulary and warp across a tile. */
static __host__ __device__ __forceinline__ int count_parts(int V) {
    return min_int(PARTS, ceil_div(V, WORDS));
}
static __host__ __device__ __forceinline__ int count_states(int V) {
    return count_parts(V) * Deep::WARPS_ACROSS;
}

/* z [LANE_COLUMNS] of a lane's r-th row in the tile whose first word is `first`. Only the last tile
   has words to mask. The scaling is never fused into what uses z, which would change its bits. */
template <class T>
static __device__ __forceinline__ void lane_logits(float *z, TileSums<T> *sum, const Scoring &s,
                                                   int r, int first) {
#pragma unroll
    for (int c = 0; c < T::LANE_COLUMNS; c++)
        z[c] = __fmul_rn(*lane_sum(sum, r, c), s.inv_temperature);
    if (first + T::COLUMNS <= s.V) return;
#pragma unroll
    for (int c = 0; c < T::LANE_COLUMNS; c++)
        if (first + lane_column<T>(c) >= s.V) z[c] = -INFINITY;
}

/* Stores the target's logit if it is among this lane's. Exactly one lane of the row has it. */
template <class T>
static __device__ __forceinline__ void keep_target(const Scoring &s, const float *z, int row,
                                                   int first) {
    int step = s.target[min_int(row, s.n - 1)] - first - lane_column<T>(0);
    if (row >= s.n || step < 0 || step >= T::WARP_COLUMNS || step % 8 >= 2) return;
#pragma unroll
    for (int c = 0; c < T::LANE_COLUMNS; c++)
        if (lane_column_step(c) == step) s.target_logit[row] = z[c];
}

template <int COUNT>
static __device__ __forceinline__ void add_logits(RowState *state, const float *z) {
    float m = state->m;
#pragma unroll
    for (int c = 0; c < COUNT; c++) m = fmaxf(m, z[c]);
    *state = row_state_move(*state, m);
#pragma unroll
    for (int c = 0; c < COUNT; c++) row_state_add(state, z[c]);
}

/* Merges what the four lanes of each row have seen, and writes it. */
template <class T>
static __device__ __forceinline__ void store_states(const Scoring &s, const RowState *state,
                                                    int first_row, int part, int parts) {
    int place = part * T::WARPS_ACROSS + tile_warp_across<T>(), count = parts * T::WARPS_ACROSS;
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++) {
        RowState x = row_state_merge(state[r], row_state_shuffle(state[r], 1));
        x = row_state_merge(x, row_state_shuffle(x, 2));
        int row = first_row + lane_row<T>(r);
        if (threadIdx.x % 4 == 0 && row < s.n) s.states[(size_t)row * count + place] = x;
    }
}

template <class T>
static __global__ void __launch_bounds__(T::THREADS) head_forward_kernel(Scoring s) {
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x * T::ROWS, part = blockIdx.y, parts = gridDim.y;
    int tiles = ceil_div(s.V, T::COLUMNS);
    int first = tiles * part / parts * T::COLUMNS, end = tiles * (part + 1) / parts * T::COLUMNS;
    int *index = (int *)(shared + T::SHARED);
    TileProduct product = {s.E, s.W, index, first_row, first, s.C, shared};
    RowState state[T::LANE_ROWS];
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++) state[r] = row_state_empty();
    tile_index<T>(index, s.row, first_row, s.n);
    tile_product_begin<T>(product);
    for (; first < end; first += T::COLUMNS) {
        TileSums<T> sum;
        tile_product(&sum, product);
        product.y_first = first + T::COLUMNS;
        if (product.y_first < end) tile_product_begin<T>(product);
#pragma unroll
        for (int r = 0; r < T::LANE_ROWS; r++) {
            float z[T::LANE_COLUMNS];
            lane_logits(z, &sum, s, r, first);
            keep_target<T>(s, z, first_row + lane_row<T>(r), first);
            add_logits<T::LANE_COLUMNS>(&state[r], z);
        }
    }
    store_states<T>(s, state, first_row, part, parts);
}

/* A warp merges a row's states: each lane every 32nd, in order; then the lanes. results [4][n]. */
static __global__ void merge_kernel(float *results, const RowState *states,
                                    const float *target_logit, int n, int count) {
    int row = blockIdx.x * MERGE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) return;
    RowState x = row_state_empty();
    for (int i = lane; i < count; i += WARP)
        x = row_state_merge(x, states[(size_t)row * count + i]);
    for (int lanes = 1; lanes < WARP; lanes *= 2)
        x = row_state_merge(x, row_state_shuffle(x, lanes));
    if (lane != 0) return;
    size_t stride = n;
    results[row] = (target_logit[row] - x.m) - logf(x.s);
    results[row + stride] = row_state_entropy(x);
    results[row + 2 * stride] = row_state_q(x);
    results[row + 3 * stride] = row_state_qlog(x);
}

/* Bytes of shared memory: the stages, and the block's list of rows of E. */
template <class T> static constexpr int shared_bytes() {
    return T::SHARED + T::ROWS * (int)sizeof(int);
}

template <class T> static void launch(const Scoring &s) {
    dim3 grid(ceil_div(s.n, T::ROWS), count_parts(s.V));
    ALLOW_SHARED(shared_bytes<T>(), head_forward_kernel<T>);
    head_forward_kernel<T><<<grid, T::THREADS, shared_bytes<T>(), cuda.stream>>>(s);
    CUDA_CHECK_LAUNCH();
}

/* The workspace: states, then target logits, then results. */
static size_t states_bytes(int n, int V) {
    return align_up((size_t)n * count_states(V) * sizeof(RowState), 256);
}
static size_t logits_bytes(int n) { return align_up((size_t)n * sizeof(float), 256); }

/* For download, which lands small results in pinned memory. */
static struct Ops *slots;

/* All statistics in one download, and from the landing place to where they are wanted. The landing
   place grows to the largest n seen. */
static void stats_download(const struct HeadStats *stats, const float *results, int n) {
    static float *landing;
    static size_t capacity;
    size_t bytes = (size_t)n * sizeof(float);
    if (4 * bytes > capacity) {
        free(landing);
        landing = (float *)malloc(4 * bytes);
        if (!landing) cuda_die("out of memory: %zu bytes for the head's statistics", 4 * bytes);
        capacity = 4 * bytes;
    }
    slots->download(landing, results, 4 * bytes);
    float *const wanted[] = {stats->logp, stats->entropy, stats->q, stats->qlog};
    for (int k = 0; k < 4; k++)
        if (wanted[k]) memcpy(wanted[k], landing + (size_t)k * n, bytes);
}

static void head_forward(const struct HeadStats *stats, const floatX *E, const floatX *W,
                         const struct HeadTokens *tokens, const struct Head *head,
                         void *workspace) {
    const int n = tokens->n, C = head->C, V = head->V;
    if (n == 0) return;
    char *place = (char *)workspace;
    RowState *states = (RowState *)place;
    float *target_logit = (float *)(place + states_bytes(n, V));
    float *results = (float *)(place + states_bytes(n, V) + logits_bytes(n));
    Scoring s = {tile_rows(E, (size_t)C, n), tile_rows(W, (size_t)C, V), tokens->row,
                 tokens->target, states, target_logit, n, C, V, head->inv_temperature};
    if (cuda.shared_limit >= shared_bytes<Deep>()) launch<Deep>(s);
    else launch<Shallow>(s);
    merge_kernel<<<ceil_div(n, MERGE_WARPS), MERGE_WARPS * WARP, 0, cuda.stream>>>(
        results, states, target_logit, n, count_states(V));
    CUDA_CHECK_LAUNCH();
    stats_download(stats, results, n);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    int n = shape->N;
    return states_bytes(n, shape->V) + logits_bytes(n) + (size_t)n * 4 * sizeof(float);
}

static void fill(struct Ops *ops) {
    slots = ops;
    ops->head_forward = head_forward;
}

extern const struct KernelFile PER_TYPE(cuda_head_forward) = {"head_forward", fill,
                                                              workspace_bytes};
