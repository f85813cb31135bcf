/* The head as a textbook has it: all n x V logits are formed, kept, and read by whoever needs them.

       E rows --gather--> hidden [n,C]
       hidden W^T  -----> logits [n,stride], float32                       2 nVC flop
       a block per row -> logp, H, Q, QL -> host, objective -> a, b        reads logits three times
       a block per row -> dz [n,stride], floatX                            reads logits once more
       dz W        -----> dhidden --scatter--> rows of dE                  2 nVC flop
       dz^T hidden -----> dW +=                                            2 nVC flop

   The products are cuBLASLt's. Besides them 18 bytes of traffic a logit in the narrow types, and 6
   bytes of memory: 2.5 GB for 8192 tokens of GPT-2, 6.4 GB for a vocabulary of 131072.

   A framework would form the logits a second time for the gradient, or keep them from the loss to
   the backward pass. Here the objective is asked in between, as in every version. */
#include "lab.cuh"
#include "../../llmc/kernels/gemm.cuh"

enum { THREADS = 256 };

/* The n tokens and what is known of them; arrays in the workspace. */
struct Table {
    int n, C, V, Vp;
    size_t stride;   /* of logits and dz: Vp, rounded up for tensor cores */
    floatX *hidden;  /* [n,C] */
    float *logits;   /* [n,stride] */
    floatX *dz;      /* [n,stride] */
    floatX *dhidden; /* [n,C] */
    float *stats;    /* [4][n] logp, H, Q, QL */
    float *log_sum;  /* [2][n] the maximum m and ln sum e^(z-m) */
    float *coefficients; /* [2][n] a, b */
};

static struct Ops *slots; /* for the slots this one is made of */

static void *take(char *workspace, size_t *offset, size_t count, size_t size) {
    void *place = workspace ? workspace + *offset : NULL;
    *offset += (count * size + 255) / 256 * 256;
    return place;
}

/* Lays the arrays out in the workspace (NULL: only measures); returns their bytes. */
static size_t table_open(struct Table *t, char *workspace, int n, int C, int V, int Vp) {
    size_t offset = 0, count = n;
    t->n = n, t->C = C, t->V = V, t->Vp = Vp, t->stride = (Vp + 7) / 8 * 8;
    t->hidden = (floatX *)take(workspace, &offset, count * C, sizeof(floatX));
    t->logits = (float *)take(workspace, &offset, count * t->stride, sizeof(float));
    t->dz = (floatX *)take(workspace, &offset, count * t->stride, sizeof(floatX));
    t->dhidden = (floatX *)take(workspace, &offset, count * C, sizeof(floatX));
    t->stats = (float *)take(workspace, &offset, 4 * count, sizeof(float));
    t->log_sum = (float *)take(workspace, &offset, 2 * count, sizeof(float));
    t->coefficients = (float *)take(workspace, &offset, 2 * count, sizeof(float));
    return offset;
}

/* ---- kernels: a block per row ---------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
gather_kernel(floatX *hidden, const floatX *E, const int *row, int C) {
    size_t to = blockIdx.x, from = row[blockIdx.x];
    for (int d = threadIdx.x; d < C; d += THREADS) hidden[to * C + d] = E[from * C + d];
}

static __global__ void __launch_bounds__(THREADS)
scatter_kernel(floatX *dE, const floatX *dhidden, const int *row, int C) {
    size_t from = blockIdx.x, to = row[blockIdx.x];
    for (int d = threadIdx.x; d < C; d += THREADS) dE[to * C + d] = dhidden[from * C + d];
}

static __device__ float block_max(float x, float *scratch) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int w = 0; w < THREADS / WARP; w++) x = fmaxf(x, scratch[w]);
    return x;
}

/* The formulas of doc/head.md, one after another: the maximum, then the four sums, and these are
   read in two passes, as log-probability and entropy are two calls elsewhere. */
static __global__ void __launch_bounds__(THREADS)
stats_kernel(struct Table t, const int *target) {
    __shared__ float scratch[THREADS / WARP];
    int i = blockIdx.x;
    const float *z = t.logits + i * t.stride;
    float m = -INFINITY, s = 0, w = 0, q = 0, r = 0;
    for (int j = threadIdx.x; j < t.V; j += THREADS) m = fmaxf(m, z[j]);
    m = block_max(m, scratch);
    for (int j = threadIdx.x; j < t.V; j += THREADS) s += expf(z[j] - m);
    s = block_sum<THREADS>(s, scratch);
    for (int j = threadIdx.x; j < t.V; j += THREADS) {
        float centred = z[j] - m, e = expf(centred);
        if (e == 0) continue;
        w += e * centred;
        q += e * e;
        r += e * e * centred;
    }
    w = block_sum<THREADS>(w, scratch);
    q = block_sum<THREADS>(q, scratch);
    r = block_sum<THREADS>(r, scratch);
    if (threadIdx.x > 0) return;
    float log_s = logf(s);
    t.stats[i] = (z[target[i]] - m) - log_s;
    t.stats[t.n + i] = log_s - w / s;
    t.stats[2 * t.n + i] = q / s / s;
    t.stats[3 * t.n + i] = (r - q * log_s) / s / s;
    t.log_sum[i] = m;
    t.log_sum[t.n + i] = log_s;
}

/* dz = (p (k0 + k1 log p) + a 1[y]) / temperature. A row without coefficients becomes 0, and its
   hidden state too, because 0 times what is not finite would not be 0. */
static __global__ void __launch_bounds__(THREADS)
dlogits_kernel(struct Table t, const int *target, float inv_temperature) {
    int i = blockIdx.x, y = target[i];
    const float *z = t.logits + i * t.stride;
    float a = t.coefficients[i], b = t.coefficients[t.n + i], entropy = t.stats[t.n + i];
    float m = t.log_sum[i], log_s = t.log_sum[t.n + i];
    bool nothing = a == 0 && b == 0;
    for (int j = threadIdx.x; j < (int)t.stride; j += THREADS) {
        float logp = (z[j] - m) - log_s, dz = expf(logp) * (-a - b * (entropy + logp));
        if (j == y) dz += a;
        t.dz[i * t.stride + j] = from_f<floatX>(nothing || j >= t.V ? 0 : dz * inv_temperature);
    }
    for (int d = threadIdx.x; nothing && d < t.C; d += THREADS)
        t.hidden[(size_t)i * t.C + d] = from_f<floatX>(0);
}

/* ---- the slots ------------------------------------------------------------------------------- */

/* Logits and statistics; the latter also to the host, [4][n]. */
static void forward(struct Table *t, float *stats, const floatX *E, const floatX *W,
                    const struct HeadTokens *tokens, const struct Head *head, void *workspace) {
    int n = tokens->n;
    table_open(t, (char *)workspace, n, head->C, head->V, head->Vp);
    gather_kernel<<<n, THREADS, 0, cuda.stream>>>(t->hidden, E, tokens->row, t->C);
    CUDA_CHECK_LAUNCH();
    gemm(GEMM_NT, matrix(t->logits, t->stride), matrix(t->hidden, t->C), matrix(W, t->C), n, t->Vp,
         t->C, head->inv_temperature, 0.0f);
    stats_kernel<<<n, THREADS, 0, cuda.stream>>>(*t, tokens->target);
    CUDA_CHECK_LAUNCH();
    slots->download(stats, t->stats, 4 * n * sizeof(float));
}

static void store(const struct HeadStats *stats, const float *four, int n) {
    float *const to[] = {stats->logp, stats->entropy, stats->q, stats->qlog};
    for (int k = 0; k < 4; k++)
        if (to[k]) memcpy(to[k], four + (size_t)k * n, n * sizeof(float));
}

static float *host_floats(size_t count) {
    float *x = (float *)malloc(count * sizeof *x);
    if (!x) cuda_die("head_materialised: no memory for %zu numbers", count);
    return x;
}

static void head_forward(const struct HeadStats *stats, const floatX *E, const floatX *W,
                         const struct HeadTokens *tokens, const struct Head *head,
                         void *workspace) {
    struct Table t;
    if (tokens->n == 0) return;
    float *four = host_floats(4 * (size_t)tokens->n);
    forward(&t, four, E, W, tokens, head, workspace);
    store(stats, four, t.n);
    free(four);
}

static void head_forward_backward(const struct HeadStats *stats, floatX *dE, float *dW,
                                  const floatX *E, const floatX *W,
                                  const struct HeadTokens *tokens, const struct Head *head,
                                  HeadUpstream upstream, void *context, void *workspace) {
    struct Table t;
    int n = tokens->n, C = head->C;
    slots->fill_zero(dE, (size_t)tokens->N * C * sizeof *dE);
    if (n == 0) return;
    float *four = host_floats(6 * (size_t)n), *ab = four + 4 * (size_t)n;
    struct HeadStats seen = {four, four + n, four + 2 * n, four + 3 * n};
    forward(&t, four, E, W, tokens, head, workspace);
    store(stats, four, n);
    upstream(context, 0, n, &seen, ab, ab + n);
    slots->upload(t.coefficients, ab, 2 * n * sizeof(float));
    free(four);
    dlogits_kernel<<<n, THREADS, 0, cuda.stream>>>(t, tokens->target, head->inv_temperature);
    CUDA_CHECK_LAUNCH();
    gemm(GEMM_NN, matrix(t.dhidden, C), matrix(t.dz, t.stride), matrix(W, C), n, C, t.Vp, 1.0f,
         0.0f);
    scatter_kernel<<<n, THREADS, 0, cuda.stream>>>(dE, t.dhidden, tokens->row, C);
    CUDA_CHECK_LAUNCH();
    if (!dW) return;
    gemm(GEMM_TN, matrix(dW, C), matrix(t.dz, t.stride), matrix(t.hidden, C), t.Vp, C, n, 1.0f,
         1.0f);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    struct Table t;
    return table_open(&t, NULL, shape->N, shape->C, shape->V, shape->Vp);
}

static void fill(struct Ops *ops) {
    slots = ops;
    ops->head_forward = head_forward;
    ops->head_forward_backward = head_forward_backward;
}

extern const struct KernelFile PER_TYPE(head_materialised) = {"head_materialised", fill,
                                                              workspace_bytes};
