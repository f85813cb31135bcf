/* All logits are stored, and read once: a thread keeps maximum, sums and winner of the logits it
   has seen, four at a time, and multiplies the sums by e^(m - M) when it meets a new maximum
   (online softmax, 1805.02867).

       bytes   V C weights, and 4 bytes a logit written and once read
       blocks  R, as in sample_materialised */
#include "sample_logits.cuh"

/* Four logits more, and their words v .. v + 3. -INFINITY: no word. */
static __device__ __forceinline__ void add_words(RowState *state, Winner *winner, const float z[4],
                                                 int v, int row, const Sampling &s) {
    const float maximum = fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3]));
    float score[4];
    if (maximum > state->m) *state = row_state_move(*state, maximum);
    scores(score, z, v, row, s);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        row_state_add(state, z[e]);
        if (score[e] > winner->score) *winner = Winner{score[e], z[e], v + e};
    }
}

static __global__ void __launch_bounds__(DRAW_THREADS)
    draw_kernel(int *token, float *logp, float *entropy, const float *logits, Sampling s) {
    __shared__ RowState state_of[DRAW_WARPS];
    __shared__ Winner winner_of[DRAW_WARPS];
    const int row = blockIdx.x, warp = threadIdx.x / WARP;
    const bool empty = s.position[row] < 0;
    const int V = empty ? 0 : s.V;
    RowState state = row_state_empty();
    Winner winner = {-INFINITY, -INFINITY, min_int(4 * threadIdx.x, s.V - 1)};
    logits += row * logits_stride(s.V);
    for (int v = 4 * threadIdx.x; v < V; v += 4 * DRAW_THREADS) {
        const float4 four = *(const float4 *)(logits + v);
        const float z[4] = {four.x, v + 1 < V ? four.y : -INFINITY,
                            v + 2 < V ? four.z : -INFINITY, v + 3 < V ? four.w : -INFINITY};
        add_words(&state, &winner, z, v, row, s);
    }
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        state = row_state_merge(state, row_state_shuffle(state, lanes));
        winner = better(winner, winner_shuffle(winner, lanes));
    }
    if (threadIdx.x % WARP == 0) state_of[warp] = state, winner_of[warp] = winner;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < DRAW_WARPS; w++) {
        state = row_state_merge(state, state_of[w]);
        winner = better(winner, winner_of[w]);
    }
    write_draw(token, logp, entropy, row, winner, state, empty);
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

extern const struct KernelFile PER_TYPE(sample_one_pass) = {"sample_one_pass", fill, logits_bytes};
