/* The head's gradient on Hopper: what head.cu does chunk by chunk, with e^(z-m) in bf16, 2 bytes a
   logit, in the place of logits and of dz. Three kernels do the work of a chunk:

       E rows --copy--> hidden [n,C]
       hidden W^T     -> e [n,stride], its offsets, states of rows        head_hopper_logits.cuh
       states         -> logp, H, Q, QL -> host, objective -> a, b
       (a, b, offset) -> (f, g) for each row and tile of 256 words
       dz W           -> partial sums over parts of the vocabulary --add--> rows of dE
       dz^T hidden    -> dW +=                                            head_hopper_products.cuh

   Two chunks are under way, as in head.cu: the host computes one's coefficients while the device
   forms the next one's logits. A chunk is half of the rows, at least 2048 and at most what takes
   1 GiB of e. It depends on sizes only, and so do all sums.

   A token whose coefficients are 0 has f = g = 0, and its hidden state counts as 0.

   bf16 only: in fp16 the error of e would be the largest (head_hopper_products.cuh). */
#include <type_traits>
#include "head_hopper_products.cuh"

enum {
    CHUNK_LEAST = 2048, CHUNK_MOST = 16384, CHUNK_BYTES = 1 << 30,
    MOST_SPLITS = 8,
    CLUSTERS = 66 /* of an H100: what splits are chosen for, on every device */
};

static struct Ops *slots;

/* ---- kernels --------------------------------------------------------------------------------- */

/* What is known of a chunk's rows on the device, and what the objective says of them [n]. */
struct Coefficients {
    const float *dlogp, *dentropy;
};

/* factor [tiles][rows_padded] = (f, g). A block is of one tile. */
static __global__ void __launch_bounds__(COPIERS)
factor_kernel(float2 *factor, const float *offset, RowResults row, Coefficients of, int n,
              int rows_padded, float inv_temperature) {
    int i = blockIdx.x * COPIERS + threadIdx.x;
    size_t tile = blockIdx.y;
    float2 fg = make_float2(0.0f, 0.0f);
    float a = i < n ? of.dlogp[i] : 0.0f, b = i < n ? of.dentropy[i] : 0.0f;
    if (a != 0 || b != 0) {
        float distance = (offset[tile * n + i] - row.maximum[i]) * inv_temperature;
        float log2_p = distance * LOG2_E - row.log2_s[i];
        float p = exp2f(log2_p) * inv_temperature;
        fg.x = p * (-a - b * row.entropy[i] - b * LN_2 * log2_p);
        fg.y = p * -b * LN_2;
    }
    factor[tile * rows_padded + i] = fg;
}

/* Hidden states of tokens without coefficients become 0: they may not be finite. */
static __global__ void __launch_bounds__(COPIERS)
clear_dead_rows_kernel(narrow *hidden, Coefficients of, int stride) {
    size_t i = blockIdx.x;
    if (of.dlogp[i] != 0 || of.dentropy[i] != 0) return;
    for (int d = threadIdx.x; d < stride; d += COPIERS) hidden[i * stride + d] = narrow(0.0f);
}

/* dE [row[i]] = the sum of the parts, in order, rounded once. */
static __global__ void __launch_bounds__(COPIERS)
add_parts_kernel(floatX *dE, const float *partial, const int *row, int C, int splits) {
    size_t part = (size_t)gridDim.x * C;
    partial += (size_t)blockIdx.x * C;
    dE += (size_t)row[blockIdx.x] * C;
    for (int d = threadIdx.x; d < C; d += COPIERS) {
        float sum = partial[d];
        for (int s = 1; s < splits; s++) sum += partial[s * part + d];
        dE[d] = floatX(sum);
    }
}

/* ---- the workspace --------------------------------------------------------------------------- */

/* What a chunk keeps until its gradient is formed. There are two. */
struct Chunk {
    int n;
    narrow *hidden;
    __nv_bfloat16 *e; /* [n,stride] */
    float *offset;    /* [tiles][n] */
    float *results;   /* [6][n] */
    float *dlogp;     /* [2][n], dJ/dentropy behind it */
};

struct Workspace {
    struct Chunk chunk[2];
    narrow *W;
    RowState *states;
    float *target_sum;
    float2 *factor;
    float *partial;
};

static int chunk_rows(int n, int V) {
    int most = min_int(CHUNK_MOST, (int)(CHUNK_BYTES / (align_up(V, 8) * sizeof(__nv_bfloat16))));
    int half = ceil_div(ceil_div(n, 2), PAIR_ROWS) * PAIR_ROWS;
    return max_int(CHUNK_LEAST, min_int(half, most / PAIR_ROWS * PAIR_ROWS));
}

/* Parts of the vocabulary in the product for dE: the fewest with which the last round of clusters
   is nearly full, or those with which it is fullest. */
static int choose_splits(int n, int C, int V) {
    int units = ceil_div(n, PAIR_ROWS) * ceil_div(C, BLOCK_COLUMNS), best = 1;
    double best_share = 0;
    for (int splits = 1; splits <= min_int(MOST_SPLITS, ceil_div(V, BLOCK_COLUMNS)); splits++) {
        int all = units * splits;
        double share = (double)all / (ceil_div(all, CLUSTERS) * CLUSTERS);
        if (share > best_share) best = splits, best_share = share;
        if (share > 0.95) break;
    }
    return best;
}

/* Bytes of dE's parts for the worst of up to n rows. */
static size_t partial_bytes(int n, int C, int V) {
    size_t most = 0;
    for (int rows = min_int(n, PAIR_ROWS); rows < n + PAIR_ROWS; rows += PAIR_ROWS) {
        size_t r = min_int(rows, n), bytes = choose_splits((int)r, C, V) * r * C * sizeof(float);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int padded_rows(int n) { return ceil_div(n, PAIR_ROWS) * PAIR_ROWS; }

static void *take(char *base, size_t *at, size_t bytes) {
    void *place = base + *at;
    *at += align_up(bytes, 256);
    return place;
}

static void chunk_open(struct Chunk *c, char *base, size_t *at, int n, int C, int V) {
    size_t rows = n, tiles = ceil_div(V, BLOCK_COLUMNS);
    c->n = n;
    c->hidden = (narrow *)take(base, at, rows * copied_stride(C) * sizeof(narrow));
    c->e = (__nv_bfloat16 *)take(base, at, rows * align_up(V, 8) * sizeof(__nv_bfloat16));
    c->offset = (float *)take(base, at, tiles * rows * sizeof(float));
    c->results = (float *)take(base, at, 6 * rows * sizeof(float));
    c->dlogp = (float *)take(base, at, 2 * rows * sizeof(float));
}

/* Lays it out for n tokens (base NULL: only measures); returns its bytes. */
static size_t workspace_open(struct Workspace *w, char *base, int n, int C, int V) {
    size_t at = 0;
    int most = min_int(n, chunk_rows(n, V)), tiles = ceil_div(V, BLOCK_COLUMNS);
    chunk_open(&w->chunk[0], base, &at, most, C, V);
    chunk_open(&w->chunk[1], base, &at, min_int(most, n - most), C, V);
    w->W = (narrow *)take(base, &at, readable_bytes(V, C));
    w->states = (RowState *)take(base, &at, states_bytes(most, V));
    w->target_sum = (float *)take(base, &at, most * sizeof(float));
    w->factor = (float2 *)take(base, &at, (size_t)tiles * padded_rows(most) * sizeof(float2));
    w->partial = (float *)take(base, &at, partial_bytes(most, C, V));
    return at;
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    struct Workspace w;
    return workspace_open(&w, NULL, shape->N, shape->C, shape->V);
}

/* ---- a chunk --------------------------------------------------------------------------------- */

/* The call's sizes and arrays. */
struct Call {
    struct Workspace w;
    const floatX *E;
    const narrow *W;
    floatX *dE;
    float *dW;
    const int *row, *target;
    int C, V;
    float inv_temperature;
};

static RowResults row_results(const struct Chunk *c) {
    float *f = c->results;
    size_t n = c->n;
    return RowResults{f, f + n, f + 2 * n, f + 3 * n, f + 4 * n, f + 5 * n};
}

static CUtensorMap e_map(const struct Chunk *c, int V, int rows) {
    return tensor_map_2d(c->e, c->n, V, align_up(V, 8), rows, STAGE_K);
}

/* Logits and statistics of c->n tokens from `first` on. */
static void chunk_forward(const struct Call *call, const struct Chunk *c, int first) {
    const struct Workspace *w = &call->w;
    copy_rows(c->hidden, call->E, call->row + first, c->n, call->C);
    Logits x = logits_of(c->hidden, call->W, call->target + first, w->target_sum, w->states, c->n,
                         call->C, call->V, call->inv_temperature);
    x.e = e_map(c, call->V, GROUP_ROWS);
    x.offset = c->offset;
    cudaLaunchAttribute pairs;
    cudaLaunchConfig_t config =
        pairs_config(&pairs, count_clusters(logits_units(x)), LOGITS_STORE_SHARED);
    ALLOW_SHARED(LOGITS_STORE_SHARED, logits_kernel<true>);
    CUDA_CHECK(cudaLaunchKernelEx(&config, logits_kernel<true>, x));
    merge_states_kernel<<<ceil_div(c->n, COPIERS), COPIERS, 0, cuda.stream>>>(
        row_results(c), w->states, w->target_sum, c->n, x.parts, x.c);
    CUDA_CHECK_LAUNCH();
}

static Products products_of(const struct Call *call, const struct Chunk *c, int first) {
    const struct Workspace *w = &call->w;
    const int C = call->C, V = call->V, stride = copied_stride(C);
    Products x = {};
    x.n = c->n, x.C = C, x.V = V;
    x.rows_padded = padded_rows(c->n);
    x.tiles = ceil_div(V, BLOCK_COLUMNS), x.column_tiles = ceil_div(C, BLOCK_COLUMNS);
    x.splits = choose_splits(c->n, C, V);
    x.e_rows = e_map(c, V, BLOCK_ROWS);
    x.e_words = e_map(c, V, STAGE_K);
    x.W = tensor_map_2d(call->W, V, stride, stride, STAGE_K, STAGE_K);
    x.hidden = tensor_map_2d(c->hidden, c->n, stride, stride, STAGE_K, STAGE_K);
    x.factor_map = tensor_map_2d((const float *)w->factor,
                                 (int)((size_t)x.tiles * x.rows_padded * 2 / FACTOR_ROW),
                                 FACTOR_ROW, FACTOR_ROW, FACTOR_BYTES / LINE, FACTOR_ROW);
    x.factor = w->factor;
    x.target = call->target + first, x.at_target = c->dlogp;
    x.partial = w->partial, x.dW = call->dW;
    x.inv_temperature = call->inv_temperature;
    return x;
}

/* dE and dW of a chunk whose coefficients are known. */
static void chunk_backward(const struct Call *call, const struct Chunk *c, int first) {
    const Products x = products_of(call, c, first);
    Coefficients of = {c->dlogp, c->dlogp + c->n};
    factor_kernel<<<dim3(x.rows_padded / COPIERS, x.tiles), COPIERS, 0, cuda.stream>>>(
        call->w.factor, c->offset, row_results(c), of, c->n, x.rows_padded, x.inv_temperature);
    CUDA_CHECK_LAUNCH();
    cudaLaunchAttribute pairs;
    cudaLaunchConfig_t config =
        pairs_config(&pairs, count_clusters(rows_units(x)), PRODUCTS_SHARED);
    ALLOW_SHARED(PRODUCTS_SHARED, products_kernel<ROWS>);
    CUDA_CHECK(cudaLaunchKernelEx(&config, products_kernel<ROWS>, x));
    add_parts_kernel<<<c->n, COPIERS, 0, cuda.stream>>>(call->dE, x.partial, call->row + first,
                                                        x.C, x.splits);
    CUDA_CHECK_LAUNCH();
    if (!call->dW) return;
    clear_dead_rows_kernel<<<c->n, COPIERS, 0, cuda.stream>>>(c->hidden, of, copied_stride(x.C));
    CUDA_CHECK_LAUNCH();
    config = pairs_config(&pairs, count_clusters(words_units(x)), PRODUCTS_SHARED);
    ALLOW_SHARED(PRODUCTS_SHARED, products_kernel<WORDS>);
    CUDA_CHECK(cudaLaunchKernelEx(&config, products_kernel<WORDS>, x));
}

/* Pinned host memory for the statistics of a chunk, so that the copy runs while the host computes:
   two, as there are two chunks. */
struct Landing {
    float *values; /* [4][CHUNK_MOST] */
    cudaEvent_t landed;
};
static struct Landing *landing_of(int buffer) {
    static struct Landing landings[2];
    struct Landing *landing = &landings[buffer];
    if (landing->values) return landing;
    CUDA_CHECK(cudaMallocHost((void **)&landing->values, 4 * CHUNK_MOST * sizeof(float)));
    CUDA_CHECK(cudaEventCreateWithFlags(&landing->landed, cudaEventDisableTiming));
    return landing;
}

static void chunk_send(const struct Chunk *c, const struct Landing *to) {
    CUDA_CHECK(cudaMemcpyAsync(to->values, c->results, 4 * c->n * sizeof(float),
                               cudaMemcpyDeviceToHost, cuda.stream));
    CUDA_CHECK(cudaEventRecord(to->landed, cuda.stream));
}

/* Waits for a chunk's statistics, hands them on, sends back what the objective makes of them. */
static void chunk_ask(const struct Chunk *c, const struct Landing *from, int first,
                      const struct HeadStats *stats, HeadUpstream upstream, void *context) {
    static float coefficients[2 * CHUNK_MOST];
    int n = c->n;
    float *host = from->values;
    struct HeadStats seen = {host, host + n, host + 2 * n, host + 3 * n};
    CUDA_CHECK(cudaEventSynchronize(from->landed));
    float *const wanted[] = {stats->logp, stats->entropy, stats->q, stats->qlog};
    for (int k = 0; k < 4; k++)
        if (wanted[k]) memcpy(wanted[k] + first, host + (size_t)k * n, n * sizeof(float));
    upstream(context, first, n, &seen, coefficients, coefficients + n);
    slots->upload(c->dlogp, coefficients, 2 * n * sizeof(float));
}

static void head_forward_backward(const struct HeadStats *stats, floatX *dE, float *dW,
                                  const floatX *E, const floatX *W,
                                  const struct HeadTokens *tokens, const struct Head *head,
                                  HeadUpstream upstream, void *context, void *workspace) {
    const int n = tokens->n, C = head->C, V = head->V, most = chunk_rows(n, V);
    struct Call call = {};
    slots->fill_zero(dE, (size_t)tokens->N * C * sizeof *dE);
    if (n == 0) return;
    workspace_open(&call.w, (char *)workspace, n, C, V);
    call.E = E, call.W = readable(call.w.W, W, V, C), call.dE = dE, call.dW = dW;
    call.row = tokens->row, call.target = tokens->target, call.C = C, call.V = V;
    call.inv_temperature = head->inv_temperature;
    struct Chunk *chunk = call.w.chunk;
    chunk_forward(&call, &chunk[0], 0);
    chunk_send(&chunk[0], landing_of(0));
    for (int first = 0, now = 0; first < n; first += most, now = !now) {
        int next = first + most;
        if (next < n) {
            chunk[!now].n = min_int(most, n - next);
            chunk_forward(&call, &chunk[!now], next);
            chunk_send(&chunk[!now], landing_of(!now));
        }
        chunk_ask(&chunk[now], landing_of(now), first, stats, upstream, context);
        chunk_backward(&call, &chunk[now], first);
    }
}

static void fill(struct Ops *ops) {
    slots = ops;
    if (std::is_same<floatX, __nv_bfloat16>::value)
        ops->head_forward_backward = head_forward_backward;
}

extern const struct KernelFile PER_TYPE(head_hopper_gradient) = {"head_hopper_gradient", fill,
                                                                 workspace_bytes};
