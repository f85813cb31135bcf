/* How far from its floor is each operation of a backend? For GPUs first of all:

       build/bench_backend [BACKEND [DTYPE [WHAT...]]]      default: cuda bf16, everything
       WHAT: head attention elementwise step decode

   The floor of an operation is the larger of two times: its floating-point operations over the rate
   of a large matrix product, and the bytes it must move (each input read once, each output written
   once) over the rate of a large copy, both measured first, in the same run, through the same
   backend. Times are medians of runs that end in a sync; the inputs are random and larger than a
   cache. On a simulated backend the shapes are tiny: that checks this program, not speed. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../llmc/base/check.h"
#include "../llmc/run/launch.h"
#include "../llmc/base/rng.h"
#include "../llmc/base/time.h"
#include "../llmc/kernels/backends.h"
#include "bench_rig.h"

static const struct Ops *ops;
static bool tiny;                       /* a simulated backend */
static double flop_rate, byte_rate;     /* per second, measured */

/* ---- measuring ------------------------------------------------------------------------------- */

enum { REPEATS = 11 };

/* Seconds of one call, the median of REPEATS groups of `each` calls after a group that is not
   counted. */
static double time_of(void (*call)(void *), void *context, int each) {
    double times[REPEATS];
    int repeats = tiny ? 1 : REPEATS;
    if (tiny) each = 1;
    for (int i = -1; i < repeats; i++) {
        ops->sync();
        double begin = seconds();
        for (int k = 0; k < each; k++) call(context);
        ops->sync();
        if (i >= 0) times[i] = (seconds() - begin) / each;
    }
    return median(times, repeats);
}

static double larger(double a, double b) { return a > b ? a : b; }

/* One row of the table; flop: useful ones. */
static void print_row(const char *name, double time, double flop, double bytes) {
    double floor = larger(flop / flop_rate, bytes / byte_rate);
    printf("%-46s %9.3f ms %8.1f TFLOP/s %7.0f GB/s  %5.1f %% of floor\n", name, 1e3 * time,
           1e-12 * flop / time, 1e-9 * bytes / time, 100 * floor / time);
    fflush(stdout);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void *owned[256];
static int num_owned;

static void *new_bytes(size_t bytes) {
    if (num_owned == 256) die_machine("the benchmark keeps too many buffers");
    return owned[num_owned++] = ops->alloc(bytes);
}

static void free_all(void) {
    while (num_owned) ops->free(owned[--num_owned]);
}

/* n elements, normal times scale; repeated after a million, which no kernel notices. */
static floatX *new_elements(size_t n, float scale) {
    enum { PERIOD = 1 << 20 };
    static float host[PERIOD];
    floatX *x = new_bytes(n * ops->element_size);
    float *wide = ops->alloc(sizeof host);
    struct Rng rng;
    rng_open(&rng, 7, RNG_TEST, (uint64_t)num_owned);
    for (int i = 0; i < PERIOD; i++) host[i] = scale * rng_normal(&rng);
    ops->upload(wide, host, sizeof host);
    for (size_t i = 0; i < n; i += PERIOD)
        ops->from_float(ops_at(ops, x, i), wide, n - i < PERIOD ? n - i : PERIOD);
    ops->sync();
    ops->free(wide);
    return x;
}

static float *new_zeros(size_t n) {
    float *x = new_bytes(n * sizeof *x);
    ops->fill_zero(x, n * sizeof *x);
    return x;
}

static int *new_ints(int n, int step, int modulo) {
    int *host = check_alloc((size_t)n, sizeof *host, "the benchmark");
    for (int i = 0; i < n; i++) host[i] = (int)((int64_t)i * step % modulo);
    int *x = new_bytes((size_t)n * sizeof *x);
    ops->upload(x, host, (size_t)n * sizeof *x);
    free(host);
    return x;
}

/* ---- the ceilings ---------------------------------------------------------------------------- */

struct Product {
    floatX *out, *x, *w;
    int size;
};

static void product(void *context) {
    struct Product *p = context;
    ops->matmul_forward(p->out, p->x, p->w, NULL, p->size, p->size, p->size);
}

struct Copy {
    char *out, *in;
    size_t bytes;
};

static void copy(void *context) {
    struct Copy *c = context;
    ops->copy(c->out, c->in, c->bytes);
}

static void bench_ceilings(void) {
    struct Product p = {.size = tiny ? 64 : 8192};
    size_t n = (size_t)p.size * (size_t)p.size;
    p.out = new_elements(n, 1), p.x = new_elements(n, 1), p.w = new_elements(n, 1);
    flop_rate = 2.0 * (double)n * p.size / time_of(product, &p, 5);
    free_all();
    struct Copy c = {.bytes = tiny ? 1 << 16 : (size_t)2 << 30};
    c.out = new_bytes(c.bytes), c.in = new_bytes(c.bytes);
    ops->fill_zero(c.in, c.bytes);
    byte_rate = 2.0 * (double)c.bytes / time_of(copy, &c, 5);
    free_all();
    printf("%-46s %.0f TFLOP/s in a product of %d^3, %.0f GB/s in a copy\n", "ceilings",
           1e-12 * flop_rate, p.size, 1e-9 * byte_rate);
}

/* ---- the head -------------------------------------------------------------------------------- */

struct HeadBench {
    struct Head head;
    struct HeadTokens tokens;
    floatX *E, *W, *dE;
    float *dW, *logp, *entropy;
    void *workspace;
};

static void coefficients(void *context, int first, int rows, const struct HeadStats *stats,
                         float *dlogp, float *dentropy) {
    (void)context, (void)first, (void)stats;
    for (int i = 0; i < rows; i++) dlogp[i] = -1e-3f, dentropy[i] = -1e-5f;
}

static void head_score(void *context) {
    struct HeadBench *h = context;
    struct HeadStats stats = {.logp = h->logp, .entropy = h->entropy};
    ops->head_forward(&stats, h->E, h->W, &h->tokens, &h->head, h->workspace);
}

static void head_learn(void *context) {
    struct HeadBench *h = context;
    struct HeadStats none = {0};
    ops->head_forward_backward(&none, h->dE, h->dW, h->E, h->W, &h->tokens, &h->head,
                               coefficients, NULL, h->workspace);
}

static void bench_head_shape(int N, int C, int V) {
    int multiple = ops->vocabulary_multiple, Vp = (V + multiple - 1) / multiple * multiple;
    struct HeadBench h = {.head = {C, V, Vp, 1}, .tokens = {.n = N, .N = N}};
    struct OpsShape shape = {.N = N, .C = C, .F = C, .NH = 1, .NKV = 1, .HS = 64, .V = V, .Vp = Vp,
                             .max_T = 1, .R = 1, .max_length = 1};
    size_t NC = (size_t)N * (size_t)C, VC = (size_t)Vp * (size_t)C;
    size_t extra = ops->workspace_size(&shape), size = ops->element_size;
    h.E = new_elements(NC, 1), h.W = new_elements(VC, 2 / sqrtf((float)C));
    h.dE = new_elements(NC, 1), h.dW = new_zeros(VC), h.workspace = new_bytes(extra);
    h.tokens.row = new_ints(N, 1, N), h.tokens.target = new_ints(N, 7919, V);
    h.logp = check_alloc((size_t)N, sizeof(float), "the benchmark");
    h.entropy = check_alloc((size_t)N, sizeof(float), "the benchmark");
    double NVC = (double)N * V * C, reads = (double)(NC + VC) * (double)size;
    char name[96];
    snprintf(name, sizeof name, "head score %dx%dx%d", N, C, V);
    print_row(name, time_of(head_score, &h, 1), 2 * NVC, reads);
    snprintf(name, sizeof name, "head learn %dx%dx%d, %.0f MB", N, C, V, 1e-6 * (double)extra);
    print_row(name, time_of(head_learn, &h, 1), 6 * NVC,
              reads + (double)(NC * size) + 8.0 * (double)VC);
    free(h.logp), free(h.entropy);
    free_all();
}

static void bench_head(void) {
    if (tiny) {
        bench_head_shape(70, 40, 333);
        return;
    }
    bench_head_shape(8192, 768, 50257);
    bench_head_shape(8192, 2304, 256000);
    bench_head_shape(16384, 1024, 151936);
}

/* ---- attention ------------------------------------------------------------------------------- */

struct Attention {
    struct Rows rows;
    struct Heads heads;
    floatX *qkv, *out, *dqkv, *dout;
    float *lse, *entropy;
    void *workspace;
};

static void attention_forward(void *context) {
    struct Attention *a = context;
    ops->attention_forward(a->out, a->lse, a->entropy, a->qkv, &a->rows, &a->heads,
                           a->workspace);
}

static void attention_backward(void *context) {
    struct Attention *a = context;
    ops->attention_backward(a->dqkv, a->dout, a->out, a->qkv, a->lse, &a->rows,
                            &a->heads, a->workspace);
}

/* B rows of T tokens, with their blocks where the backend wants some. */
static struct Rows new_rows(int B, int T) {
    struct Rows rows = {.N = B * T, .B = B, .max_T = T, .start = new_ints(B + 1, T, B * T + 1)};
    if (ops->attention_block == 0) return rows;
    size_t most = (size_t)(rows.N / ops->attention_block + B);
    struct QueryBlock *block = check_alloc(most, sizeof *block, "the benchmark");
    int *start = check_alloc((size_t)B + 1, sizeof *start, "the benchmark");
    for (int b = 0; b <= B; b++) start[b] = b * T;
    rows.blocks = rows_cut_blocks(block, start, NULL, B, ops->attention_block);
    rows.block = new_bytes(most * sizeof *block);
    ops->upload(rows.block, block, (size_t)rows.blocks * sizeof *block);
    free(block), free(start);
    return rows;
}

static void bench_attention_shape(int B, int T, int NH, int NKV, int HS) {
    int N = B * T, C = NH * HS, QKV = (NH + 2 * NKV) * HS;
    struct Attention a = {.rows = new_rows(B, T), .heads = {NH, NKV, HS}};
    struct OpsShape shape = {.N = N, .C = C, .F = C, .NH = NH, .NKV = NKV, .HS = HS, .V = 1,
                             .Vp = 1, .max_T = T, .R = 1, .max_length = 1};
    size_t out = (size_t)N * (size_t)C, qkv = (size_t)N * (size_t)QKV;
    a.qkv = new_elements(qkv, 1), a.dqkv = new_elements(qkv, 1);
    a.out = new_elements(out, 1), a.dout = new_elements(out, 1);
    a.lse = new_zeros((size_t)N * (size_t)NH), a.entropy = new_zeros((size_t)N * (size_t)NH);
    a.workspace = new_bytes(ops->workspace_size(&shape));
    double product = 2.0 * B * NH * (0.5 * T * (T + 1.0)) * HS, size = (double)ops->element_size;
    char name[96];
    snprintf(name, sizeof name, "attention forward B%d T%d NH%d/%d HS%d", B, T, NH, NKV, HS);
    print_row(name, time_of(attention_forward, &a, 5), 2 * product, (double)(out + qkv) * size);
    snprintf(name, sizeof name, "attention backward");
    print_row(name, time_of(attention_backward, &a, 5), 5 * product,
              (double)(2 * out + 2 * qkv) * size);
    free_all();
}

static void bench_attention(void) {
    if (tiny) {
        bench_attention_shape(2, 70, 2, 1, 64);
        return;
    }
    bench_attention_shape(8, 1024, 12, 12, 64);
    bench_attention_shape(64, 128, 12, 12, 64);
    bench_attention_shape(4, 4096, 32, 8, 128);
}

/* ---- operations that only move bytes --------------------------------------------------------- */

struct Elementwise {
    int N, C;
    size_t n;
    floatX *x, *out, *sum;
    struct Norm norm;
    struct NormStats stats;
    float *dw, *db, *m, *v, *g, *master;
    double *squares;
    void *workspace;
};

static void norm_forward(void *context) {
    struct Elementwise *e = context;
    ops->norm_residual_forward(e->sum, e->out, &e->stats, e->x, e->out, &e->norm, e->N, e->C);
}

static void norm_backward(void *context) {
    struct Elementwise *e = context;
    ops->norm_backward(e->sum, e->dw, e->db, e->out, e->x, &e->norm, &e->stats, e->N, e->C,
                       e->workspace);
}

static void adamw(void *context) {
    struct Elementwise *e = context;
    struct AdamwRange range = {0, e->n, 0.1f};
    struct AdamwStep step = {1e-4f, 0.9f, 0.95f, 1e-8f, 1, 1, 1};
    ops->adamw(e->x, e->master, e->m, e->v, e->g, &range, 1, 0, e->n, &step);
}

static void gradient_norm(void *context) {
    struct Elementwise *e = context;
    ops->sum_of_squares(e->squares, e->g, e->n, e->workspace);
}

static void bench_elementwise(void) {
    struct Elementwise e = {.N = tiny ? 100 : 65536, .C = tiny ? 96 : 768};
    size_t N = (size_t)e.N, C = (size_t)e.C, n = e.n = N * C;
    struct OpsShape shape = {.N = e.N, .C = e.C, .F = e.C, .NH = 1, .NKV = 1, .HS = 64, .V = 1,
                             .Vp = 1, .max_T = 1, .R = 1, .max_length = 1};
    bool narrow = ops->element_size < sizeof(float);
    double size = (double)ops->element_size, all = (double)n;
    e.x = new_elements(n, 1), e.out = new_elements(n, 1), e.sum = new_elements(n, 1);
    e.norm = (struct Norm){NORM_LAYER, 1e-5f, new_elements(C, 1), new_elements(C, 1)};
    e.stats = (struct NormStats){new_zeros(N), new_zeros(N)};
    e.dw = new_zeros(C), e.db = new_zeros(C);
    e.m = new_zeros(n), e.v = new_zeros(n), e.g = new_zeros(n);
    e.master = narrow ? new_zeros(n) : NULL;
    e.squares = new_bytes(sizeof *e.squares), e.workspace = new_bytes(ops->workspace_size(&shape));
    print_row("residual + norm forward", time_of(norm_forward, &e, 10), 0, 4 * all * size);
    print_row("norm backward", time_of(norm_backward, &e, 10), 0, 4 * all * size);
    /* m, v and the weights that count are read and written, the gradient is read; a narrow copy of
       the weights is written */
    print_row("adamw", time_of(adamw, &e, 10), 0, all * (28 + (narrow ? size : 0)));
    print_row("gradient norm", time_of(gradient_norm, &e, 10), 0, 4 * all);
    free_all();
}

/* ---- GPT-2 124M: a training step, and generation --------------------------------------------- */

static const char *size_name(void) { return tiny ? "tiny" : "gpt2"; }

static void train_step(void *context) {
    struct Learner *l = context;
    learner_update(l, 0, l->set.count, 1024);
}

/* B rows of T tokens in micro-batches of N tokens. */
static void bench_step_shape(int B, int T, int N, enum Recompute recompute, const char *word) {
    struct Learner l;
    learner_open(&l, bench_model(size_name(), ops), B, T, N, recompute, false);
    double time = time_of(train_step, &l, 1), flop = model_flops_per_token(l.model, T) * B * T;
    char name[96];
    snprintf(name, sizeof name, "step %s B%d T%d recompute %s, %.1f GB", size_name(), B, T, word,
             1e-9 * (double)l.arena.total);
    print_row(name, time, flop, 0);
    printf("%-46s %9.0f tokens/s\n", "", B * T / time);
    learner_close(&l);
}

static void bench_step(void) {
    int B = tiny ? 2 : 32, T = tiny ? 16 : 1024, N = tiny ? 32 : 32768;
    bench_step_shape(B, T, N, RECOMPUTE_NONE, "none");
    bench_step_shape(B, T, N, RECOMPUTE_LAYER, "layer");
}

/* Floor of a generation: every step reads the weights and each row's keys and values so far. */
static void bench_decode_batch(int batch) {
    const int tokens = tiny ? 6 : 256;
    struct Model *model = bench_model(size_name(), ops);
    const struct ModelConfig *c = &model->config;
    struct Generation g;
    generation_open(&g, model, batch, tokens);
    double cache = 2.0 * c->L * c->NKV * c->HS * batch * 0.5 * tokens;
    double bytes = tokens * (g.products + cache) * (double)ops->element_size;
    double time = time_of(generation_run, &g, 1);
    char name[96];
    snprintf(name, sizeof name, "decode %s batch %d, %d tokens", size_name(), batch, tokens);
    print_row(name, time, 2 * g.products * batch * tokens, bytes);
    printf("%-46s %9.0f tokens/s\n", "", batch * tokens / time);
    generation_close(&g), model_free(model);
}

static void bench_decode(void) {
    const int batches[] = {1, 8, 64, 256, 1024};
    for (int i = 0; i < (tiny ? 2 : 5); i++) bench_decode_batch(batches[i]);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } benches[] = {{"head", bench_head}, {"attention", bench_attention},
                   {"elementwise", bench_elementwise}, {"step", bench_step},
                   {"decode", bench_decode}};
    launch_prepare(argv);
    launch_threads(0);
    ops = ops_open(argc > 1 ? argv[1] : "cuda", argc > 2 ? argv[2] : "auto", 0);
    ops->matmul_choices_load("");   /* as ./train does by default */
    tiny = strncmp(ops->name, "sim", 3) == 0;
    printf("backend %s %s\n", ops->name, ops->dtype);
    bench_ceilings();
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++) {
        if (bench_wanted(benches[i].name, argc, argv, 3)) benches[i].run();
    }
    return 0;
}
