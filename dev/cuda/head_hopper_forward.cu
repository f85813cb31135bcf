/* Scoring on Hopper: head_forward by TMA, wgmma and warps with different work (head_hopper.cuh),
   statistics in registers (head_hopper_logits.cuh). Listed rows are gathered into one matrix first,
   n C elements out and in, since a TMA tile is of consecutive rows. */
#include <stdlib.h>
#include "head_hopper_logits.cuh"

static struct Ops *slots;

/* The workspace: gathered rows, a copy of W where one is needed, states, target sums, results. */
struct Workspace {
    narrow *E, *W;
    RowState *states;
    float *target_sum, *results; /* [n]; [6][n] */
};

/* Lays it out (NULL: only measures); returns its bytes. */
static size_t workspace_open(struct Workspace *w, char *base, int n, int C, int V) {
    size_t at = 0, rows = align_up((size_t)n * copied_stride(C) * sizeof(narrow), 256);
    w->E = (narrow *)(base + at), at += rows;
    w->W = (narrow *)(base + at), at += readable_bytes(V, C);
    w->states = (RowState *)(base + at), at += states_bytes(n, V);
    w->target_sum = (float *)(base + at), at += align_up(n * sizeof(float), 256);
    w->results = (float *)(base + at), at += 6 * (size_t)n * sizeof(float);
    return at;
}

/* Four arrays [n] in one download, through host memory that grows to the largest n seen. */
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
    struct Workspace w;
    if (n == 0) return;
    workspace_open(&w, (char *)workspace, n, C, V);
    copy_rows(w.E, E, tokens->row, n, C);
    Logits x = logits_of(w.E, readable(w.W, W, V, C), tokens->target, w.target_sum, w.states, n, C,
                         V, head->inv_temperature);
    cudaLaunchAttribute pairs;
    cudaLaunchConfig_t config =
        pairs_config(&pairs, count_clusters(logits_units(x)), LOGITS_SHARED);
    ALLOW_SHARED(LOGITS_SHARED, logits_kernel<false>);
    CUDA_CHECK(cudaLaunchKernelEx(&config, logits_kernel<false>, x));
    float *f = w.results;
    size_t stride = n;
    struct RowResults to = {f, f + stride, f + 2 * stride, f + 3 * stride, f + 4 * stride,
                            f + 5 * stride};
    merge_states_kernel<<<ceil_div(n, COPIERS), COPIERS, 0, cuda.stream>>>(
        to, w.states, w.target_sum, n, x.parts, x.c);
    CUDA_CHECK_LAUNCH();
    stats_download(stats, w.results, n);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    struct Workspace w;
    return workspace_open(&w, NULL, shape->N, shape->C, shape->V);
}

static void fill(struct Ops *ops) {
    slots = ops;
    if (sizeof(floatX) == 2) ops->head_forward = head_forward;
}

extern const struct KernelFile PER_TYPE(head_hopper_forward) = {"head_hopper_forward", fill,
                                                                workspace_bytes};
