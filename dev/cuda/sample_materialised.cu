/* All logits are stored, and a block for each row goes through them three times: for the maximum,
   for the sums, and for the word that wins.

       bytes   V C weights, and 4 bytes a logit written and three times read: at 64 rows of 151936
               words 39 MB each time, which a cache of 50 MB may hold; the weights, of 1024 channels
               in bf16, are 311 MB
       blocks  R: at 8 rows 124 of 132 multiprocessors wait while eight go through the logits */
#include "sample_logits.cuh"

static __device__ float block_max(float x, float *scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int w = 0; w < DRAW_WARPS; w++) x = fmaxf(x, scratch[w]);
    return x;
}

static __device__ Winner block_winner(Winner winner) {
    __shared__ Winner of_warp[DRAW_WARPS];
    for (int lanes = 1; lanes < WARP; lanes *= 2)
        winner = better(winner, winner_shuffle(winner, lanes));
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = winner;
    __syncthreads();
    for (int w = 0; w < DRAW_WARPS; w++) winner = better(winner, of_warp[w]);
    return winner;
}

static __global__ void __launch_bounds__(DRAW_THREADS)
    draw_kernel(int *token, float *logp, float *entropy, const float *logits, Sampling s) {
    __shared__ float scratch[DRAW_WARPS];
    const int row = blockIdx.x;
    const bool empty = s.position[row] < 0;
    const int V = empty ? 0 : s.V;
    RowState state = row_state_empty();
    Winner winner = {-INFINITY, -INFINITY, min_int(4 * threadIdx.x, s.V - 1)};
    logits += row * logits_stride(s.V);
    for (int v = threadIdx.x; v < V; v += DRAW_THREADS) state.m = fmaxf(state.m, logits[v]);
    state.m = block_max(state.m, scratch);
    for (int v = threadIdx.x; v < V; v += DRAW_THREADS) row_state_add(&state, logits[v]);
    state.s = block_sum<DRAW_THREADS>(state.s, scratch);
    state.w = block_sum<DRAW_THREADS>(state.w, scratch);
    for (int v = 4 * threadIdx.x; v < V; v += 4 * DRAW_THREADS) {
        float z[4], score[4];
        for (int e = 0; e < 4; e++) z[e] = v + e < V ? logits[v + e] : -INFINITY;
        scores(score, z, v, row, s);
        for (int e = 0; e < 4; e++)
            if (v + e < V && score[e] > winner.score) winner = Winner{score[e], z[e], v + e};
    }
    winner = block_winner(winner);
    if (threadIdx.x == 0) write_draw(token, logp, entropy, row, winner, state, empty);
}

static void head_sample(int *token, float *logp, float *entropy, const floatX *E,
                        const void *packed, const struct DecodeRows *rows, const uint32_t key[2],
                        const struct Head *head, int R, void *workspace) {
    float *logits = (float *)workspace;
    if (R == 0) return;
    store_logits(logits, E, packed, head, R);
    draw_kernel<<<R, DRAW_THREADS, 0, cuda.stream>>>(token, logp, entropy, logits,
                                                     sampling_of(rows, key, head));
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->head_sample = head_sample;
}

extern const struct KernelFile PER_TYPE(sample_materialised) = {"sample_materialised", fill,
                                                                logits_bytes};
