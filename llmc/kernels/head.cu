/* The head's gradient: head.c on a GPU, chunk by chunk. (Scoring alone stores no logits:
   head_forward.cu.)

   With z = E W^T / temperature, row_state.cuh gives m, s, H, Q and R of each row; logp = z_y - lse.
   The objective answers with a = dJ/dlogp and b = dJ/dH, and

       dz = p (k0 + k1 log p) + a 1[y],   k0 = -a - b H,  k1 = -b,  log p = z - m - ln s
       dE = dz W,   dW += dz^T E          (all times 1 / temperature)

   The host computes the coefficients of a chunk while the device forms the logits of the next one:
   two chunks are in the workspace, each in its half, and the statistics of one land in pinned
   memory while the other is multiplied.

       device | logits 0 | logits 1 | gradients 0 | logits 2 | gradients 1 | ..
       host              | a, b of 0 |            | a, b of 1 |

   A chunk is a third of the rows, but no fewer than 2048, and otherwise no more than take 1 GiB.
   Each product does 2 rows flop for every element of W, and at 2048 rows that begins to hide the 8
   bytes that dW is read and written with. It depends on sizes only, never on the memory that is
   free, so that a run that goes on elsewhere forms the same sums. What is done to a chunk:

       E rows --gather--> hidden [rows,C]
       hidden W^T  -----> logits [rows,stride], float32                   2 rows V C flop
       a block per row -> logp, H, Q, QL -> host, objective -> a, b        reads logits
       a block per row -> dz, in place                                    reads logits, writes dz
       dz W        -----> dhidden, float32 --scatter--> rows of dE        2 live V C flop
       dz^T hidden -----> dW +=                                           2 live V C flop

   Rows whose two coefficients are 0 (groups that were all right or all wrong, clipped ratios) have
   dz = 0. The others, the live ones, are brought to the front for the gradient products: a live row
   behind the first `live` writes its dz at the place of a dead one before it, so that no row is
   written that another block reads.

       coefficients   a0  0  a2  0  0  a5        from   0  5  2        dz   | d0 | d5 | d2 |

   Logits are float32: rounding z to bf16 would cost its log-probability up to 2^-8 |z|, 0.06 nats
   at z = 30. dz is only multiplied once more, so it is floatX. It lies at the front of its own row:

       logits   | z0  | z1  | z2  | z3  | ...      float32
       dz       |d0 d1|d2 d3| ...                  floatX: never behind the logit it is made from

   Tensor cores want the contiguous side of a matrix in multiples of 8. Of dz that is the
   vocabulary, and V is often odd (50257). So dz has zeros for the first few padding rows of W,
   which are finite, and the products take words up to the next multiple of 8.

   Besides the products, 10 bytes of traffic per logit in the narrow types and 12 in float32: read,
   read, dz written. doc/head.md has the sums. */
#include "cuda_common.cuh"
#include "gemm.cuh"
#include "row_state.cuh"

enum {
    CHUNK_LEAST = 2048, CHUNK_MOST = 16384, /* rows */
    CHUNK_BYTES = 1 << 30,
    CHUNK_UNIT = 128, /* rows that products' sizes are multiples of: each size has to be prepared */
    THREADS = 256,   /* of a block that goes through a row of logits */
    COPIERS = 128,   /* of a block that copies a row of hidden states */
    COLUMNS = 8      /* of a thread's step through a row: two loads of 16 bytes */
};

/* What is known of each row of a chunk, device arrays [rows]. The first four lie together, and so
   do the last three: one copy to the host, one back. */
struct RowValues {
    float *logp, *entropy, *q, *qlog, *maximum, *log_s, *dlogp, *dentropy;
    int *from; /* [live] the row whose gradient is formed here; -1: none, zeros */
};

/* A chunk's sizes and its place in the workspace. */
struct Chunk {
    int rows, C, V, Vp;
    int live;       /* rows of the gradient's products */
    bool moved;     /* from[i] is not i everywhere */
    int words;      /* of the gradient's products: V, and padding up to a multiple of 8 */
    size_t stride;  /* of logits, floats */
    floatX *hidden; /* [rows,C] gathered rows of E */
    float *logits;  /* [rows,stride], then dz */
    float *dhidden; /* [rows,C] */
    struct RowValues row;
};

/* The slots that move statistics to the host and coefficients to the device are called through
   this. */
static struct Ops *slots;

static void *take(char *workspace, size_t *offset, size_t count, size_t size) {
    void *place = workspace ? workspace + *offset : NULL;
    *offset += align_up(count * size, 256);
    return place;
}

/* Lays a chunk out in the workspace (NULL: only measures); returns its bytes. */
static size_t chunk_open(struct Chunk *c, char *workspace, int rows, int C, int V, int Vp) {
    size_t offset = 0, count = rows;
    c->rows = c->live = rows, c->C = C, c->V = V, c->Vp = Vp, c->moved = false;
    c->words = min_int(Vp, ceil_div(V, 8) * 8);
    c->stride = align_up(Vp, 8);
    c->hidden = (floatX *)take(workspace, &offset, count * C, sizeof(floatX));
    c->logits = (float *)take(workspace, &offset, count * c->stride, sizeof(float));
    c->dhidden = (float *)take(workspace, &offset, count * C, sizeof(float));
    float *values = (float *)take(workspace, &offset, 9 * count, sizeof(float));
    float **arrays[] = {&c->row.logp, &c->row.entropy, &c->row.q, &c->row.qlog, &c->row.maximum,
                        &c->row.log_s, &c->row.dlogp, &c->row.dentropy};
    for (size_t i = 0; i < 8; i++) *arrays[i] = values ? values + i * count : NULL;
    c->row.from = values ? (int *)(values + 8 * count) : NULL;
    return offset;
}

static floatX *chunk_dz(const struct Chunk *c) { return (floatX *)c->logits; }
static size_t chunk_dz_stride(const struct Chunk *c) {
    return c->stride * sizeof(float) / sizeof(floatX);
}

/* ---- kernels: a block per row ---------------------------------------------------------------- */

/* hidden [i] = E [row[from[i]]], or 0 where from[i] < 0; from NULL: i itself */
static __global__ void __launch_bounds__(COPIERS)
gather_kernel(floatX *hidden, const floatX *E, const int *row, const int *from, int C, bool whole) {
    int i = from ? from[blockIdx.x] : (int)blockIdx.x;
    const floatX *e = E + (size_t)row[max_int(i, 0)] * C;
    floatX *to = hidden + (size_t)blockIdx.x * C;
    for (int d = threadIdx.x * VEC; d < C; d += COPIERS * VEC) {
        float x[VEC] = {0};
        if (i >= 0) load_some(x, e + d, C - d, whole);
        store_some(to + d, x, C - d, whole);
    }
}

/* COLUMNS logits more. `count` of them are words, the rest padding. */
static __device__ __forceinline__ RowState add_columns(RowState state, const float *z, int count) {
    float part[COLUMNS], top = -INFINITY;
#pragma unroll
    for (int j = 0; j < COLUMNS; j += 4) load_some(part + j, z + j, count - j, true);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        if (j >= count) part[j] = -INFINITY;
        top = fmaxf(top, part[j]);
    }
    if (top > state.m) state = row_state_move(state, top);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) row_state_add(&state, part[j]);
    return state;
}

/* Statistics of a row of logits, which is read once: each thread has a state of its columns, and
   the states are merged over lanes, then over warps. */
static __global__ void __launch_bounds__(THREADS)
stats_kernel(struct RowValues row, const float *logits, const int *target, int V, size_t stride) {
    __shared__ RowState states[THREADS / WARP];
    const float *z = logits + blockIdx.x * stride;
    RowState state = row_state_empty();
    for (int column = threadIdx.x * COLUMNS; column < V; column += THREADS * COLUMNS)
        state = add_columns(state, z + column, V - column);
    for (int lanes = 1; lanes < WARP; lanes *= 2)
        state = row_state_merge(state, row_state_shuffle(state, lanes));
    if (threadIdx.x % WARP == 0) states[threadIdx.x / WARP] = state;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < THREADS / WARP; w++) state = row_state_merge(state, states[w]);
    int i = blockIdx.x;
    float log_s = logf(state.s);
    row.logp[i] = (z[target[i]] - state.m) - log_s;
    row.entropy[i] = row_state_entropy(state);
    row.q[i] = row_state_q(state);
    row.qlog[i] = row_state_qlog(state);
    row.maximum[i] = state.m;
    row.log_s[i] = log_s;
}

/* dz over the words of row from[blockIdx.x], in place of the logits of row blockIdx.x, which are
   its own or nobody's; 0 from V on. The block goes through the row in tiles: all threads read, then
   all write. What is written lies in this tile or before it, where all has been read; so one
   barrier between the two is enough, and none is needed between a tile's writing and the next one's
   reading. */
static __global__ void __launch_bounds__(THREADS)
dlogits_kernel(float *logits, struct RowValues row, const int *target, int V, int words,
               size_t stride, float inv_temperature) {
    int i = row.from[blockIdx.x];
    bool nothing = i < 0;
    i = max_int(i, 0);
    const float *z = logits + i * stride;
    floatX *dz = (floatX *)(logits + blockIdx.x * stride);
    float a = row.dlogp[i], b = row.dentropy[i];
    float m = row.maximum[i], log_s = row.log_s[i];
    float k0 = (-a - b * row.entropy[i]) * inv_temperature, k1 = -b * inv_temperature;
    float at_target = nothing ? 0.0f : a * inv_temperature;
    int y = target[i];
    for (int tile = 0; tile < words; tile += THREADS * VEC) {
        int column = tile + threadIdx.x * VEC, count = V - column;
        float x[VEC] = {0};
#pragma unroll
        for (int j = 0; j < VEC && !nothing; j += 4)
            load_some(x + j, z + column + j, count - j, true);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            float logp = (x[j] - m) - log_s;
            x[j] = nothing || j >= count ? 0.0f : expf(logp) * (k0 + k1 * logp);
            if (column + j == y) x[j] += at_target;
        }
        store_some(dz + column, x, words - column, true);
    }
}

/* dE [row[from[i]]] = dhidden [i] */
static __global__ void __launch_bounds__(COPIERS)
scatter_kernel(floatX *dE, const float *dhidden, const int *row, const int *from, int C,
               bool whole) {
    int i = blockIdx.x;
    if (from[i] < 0) return;
    for (int d = threadIdx.x * VEC; d < C; d += COPIERS * VEC) {
        float sum[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j += 4)
            load_some(sum + j, dhidden + (size_t)i * C + d + j, C - d - j, whole);
        store_some(dE + (size_t)row[from[i]] * C + d, sum, C - d, whole);
    }
}

/* ---- a chunk --------------------------------------------------------------------------------- */

/* Gathers the listed rows of E, forms their logits and statistics. */
static void chunk_forward(const struct Chunk *c, const floatX *E, const floatX *W, const int *row,
                          const int *target, float inv_temperature) {
    int C = c->C;
    gather_kernel<<<c->rows, COPIERS, 0, cuda.stream>>>(c->hidden, E, row, NULL, C,
                                                        rows_aligned(E, C, sizeof *E));
    CUDA_CHECK_LAUNCH();
    gemm(GEMM_NT, matrix(c->logits, c->stride), matrix(c->hidden, C), matrix(W, C), c->rows, c->Vp,
         C, inv_temperature, 0.0f);
    stats_kernel<<<c->rows, THREADS, 0, cuda.stream>>>(c->row, c->logits, target, c->V, c->stride);
    CUDA_CHECK_LAUNCH();
}

/* dE and, unless it is NULL, dW of a chunk whose coefficients are known. dE was zero. */
static void chunk_backward(const struct Chunk *c, floatX *dE, float *dW, const floatX *E,
                           const floatX *W, const int *row, const int *target,
                           float inv_temperature) {
    int C = c->C, words = c->words;
    struct Matrix dz = matrix(chunk_dz(c), chunk_dz_stride(c));
    if (c->live == 0) return;
    dlogits_kernel<<<c->live, THREADS, 0, cuda.stream>>>(c->logits, c->row, target, c->V, words,
                                                         c->stride, inv_temperature);
    CUDA_CHECK_LAUNCH();
    gemm(GEMM_NN, matrix(c->dhidden, C), dz, matrix(W, C), c->live, C, words, 1.0f, 0.0f);
    scatter_kernel<<<c->live, COPIERS, 0, cuda.stream>>>(dE, c->dhidden, row, c->row.from, C,
                                                         rows_aligned(dE, C, sizeof *dE));
    CUDA_CHECK_LAUNCH();
    if (!dW) return;
    if (c->moved) {
        gather_kernel<<<c->live, COPIERS, 0, cuda.stream>>>(c->hidden, E, row, c->row.from, C,
                                                            rows_aligned(E, C, sizeof *E));
        CUDA_CHECK_LAUNCH();
    }
    gemm(GEMM_TN, matrix(dW, C), dz, matrix(c->hidden, C), words, C, c->live, 1.0f, 1.0f);
}

/* Says where each row of the gradient's products comes from: rows with a coefficient stay where
   they are, or take the place of one without. */
static void choose_live(struct Chunk *c, int *from, const float *dlogp, const float *dentropy) {
    int live = 0, next;
    for (int i = 0; i < c->rows; i++) live += dlogp[i] != 0 || dentropy[i] != 0;
    c->live = min_int(c->rows, ceil_div(live, CHUNK_UNIT) * CHUNK_UNIT);
    c->moved = live < c->rows;
    next = c->live;
    for (int i = 0; i < c->live; i++) {
        from[i] = i;
        if (dlogp[i] != 0 || dentropy[i] != 0) continue;
        while (next < c->rows && dlogp[next] == 0 && dentropy[next] == 0) next++;
        from[i] = next < c->rows ? next++ : -1;
    }
}

/* Pinned host memory for the statistics of a chunk, so that the copy runs while the host computes.
   There are two, because two chunks are under way at a time. */
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

/* Starts a chunk's statistics on their way to the host. */
static void chunk_send(const struct Chunk *c, const struct Landing *to) {
    CUDA_CHECK(cudaMemcpyAsync(to->values, c->row.logp, 4 * c->rows * sizeof(float),
                               cudaMemcpyDeviceToHost, cuda.stream));
    CUDA_CHECK(cudaEventRecord(to->landed, cuda.stream));
}

/* Waits for a chunk's statistics, and for nothing that was enqueued after them, hands them on,
   sends back what the objective makes of them. */
static void chunk_ask(struct Chunk *c, const struct Landing *from, int first,
                      const struct HeadStats *stats, HeadUpstream upstream, void *context) {
    static float coefficients[3 * CHUNK_MOST];
    int rows = c->rows;
    size_t bytes = rows * sizeof(float);
    float *host = from->values;
    struct HeadStats seen = {host, host + rows, host + 2 * rows, host + 3 * rows};
    CUDA_CHECK(cudaEventSynchronize(from->landed));
    if (stats->logp) memcpy(stats->logp + first, seen.logp, bytes);
    if (stats->entropy) memcpy(stats->entropy + first, seen.entropy, bytes);
    if (stats->q) memcpy(stats->q + first, seen.q, bytes);
    if (stats->qlog) memcpy(stats->qlog + first, seen.qlog, bytes);
    upstream(context, first, rows, &seen, coefficients, coefficients + rows);
    choose_live(c, (int *)(coefficients + 2 * rows), coefficients, coefficients + rows);
    slots->upload(c->row.dlogp, coefficients, 3 * bytes);
}

/* Bytes that a row of a chunk takes, but for rounding. */
static size_t row_bytes(int C, int Vp) {
    return align_up(Vp, 8) * sizeof(float) + C * (sizeof(floatX) + sizeof(float)) +
           9 * sizeof(float);
}

/* Rows of a chunk of n: a third of them, within the bounds. Two chunks are in memory at a time, and
   with fewer than three nothing runs beside the making of coefficients. */
static int chunk_rows(int n, int C, int Vp) {
    int most = min_int(CHUNK_MOST, (int)(CHUNK_BYTES / row_bytes(C, Vp)));
    int third = ceil_div(ceil_div(n, 3), CHUNK_UNIT) * CHUNK_UNIT;
    return max_int(CHUNK_LEAST, min_int(third, most / CHUNK_UNIT * CHUNK_UNIT));
}

static void head_forward_backward(const struct HeadStats *stats, floatX *dE, float *dW,
                                  const floatX *E, const floatX *W,
                                  const struct HeadTokens *tokens, const struct Head *head,
                                  HeadUpstream upstream, void *context, void *workspace) {
    const int n = tokens->n, *row = tokens->row, *target = tokens->target;
    const float scale = head->inv_temperature;
    const int C = head->C, V = head->V, Vp = head->Vp, most = chunk_rows(n, C, Vp);
    struct Chunk chunk[2];
    slots->fill_zero(dE, (size_t)tokens->N * C * sizeof *dE);
    char *place[2] = {(char *)workspace, NULL};
    place[1] = place[0] + chunk_open(&chunk[0], place[0], min_int(most, n), C, V, Vp);
    if (n > 0) chunk_forward(&chunk[0], E, W, row, target, scale);
    if (n > 0) chunk_send(&chunk[0], landing_of(0));
    for (int first = 0, now = 0; first < n; first += most, now = !now) {
        int next = first + most;
        if (next < n) {
            chunk_open(&chunk[!now], place[!now], min_int(most, n - next), C, V, Vp);
            chunk_forward(&chunk[!now], E, W, row + next, target + next, scale);
            chunk_send(&chunk[!now], landing_of(!now));
        }
        chunk_ask(&chunk[now], landing_of(now), first, stats, upstream, context);
        chunk_backward(&chunk[now], dE, dW, E, W, row + first, target + first, scale);
    }
}

/* Bytes of the chunks that exist at once: two, or one where n fits in it. Fewer words may mean
   longer chunks, but they take no more than CHUNK_BYTES. A chunk's arrays are rounded up. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    size_t row = row_bytes(shape->C, shape->Vp);
    size_t chunk = CHUNK_BYTES, least = CHUNK_LEAST * row;
    if (least > chunk) chunk = least;
    size_t all = shape->N * row;
    return (all < 2 * chunk ? all : 2 * chunk) + 2 * 1024;
}

static void fill(struct Ops *ops) {
    slots = ops;
    ops->head_forward_backward = head_forward_backward;
}

extern const struct KernelFile PER_TYPE(cuda_head) = {"head", fill, workspace_bytes};
