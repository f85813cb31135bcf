/* make bench: how far from the floor is each part that users wait for?

   Every figure is a ratio to a floor measured in the same run: the bare matrix products of the same
   shapes at the best threading, or the bytes that must be read over the read bandwidth. Ours and
   the floor alternate, so that a disturbance by other processes hits both; the median of the ratios
   is printed.

       build/bench            all of them
       build/bench head ...   only those named: step head decode task monitors */
#include <cblas.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../llmc/base/console.h"
#include "../llmc/run/launch.h"
#include "../llmc/base/time.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/rl/monitor.h"
#include "../llmc/run/session.h"
#include "bench_rig.h"

/* ---- measuring ------------------------------------------------------------------------------- */

struct Timing { double ours, floor, ratio; };   /* medians: seconds, seconds, of the ratios */

/* Alternates the two `repeats` times, after one unmeasured turn of each. */
static struct Timing compare_to_floor(void (*ours)(void *), double (*floor_seconds)(void *),
                                      void *context, int repeats) {
    double a[64], b[64], r[64];
    ours(context), floor_seconds(context);
    for (int i = 0; i < repeats; i++) {
        double begin = seconds();
        ours(context);
        a[i] = seconds() - begin;
        b[i] = floor_seconds(context);
        r[i] = a[i] / b[i];
    }
    return (struct Timing){median(a, repeats), median(b, repeats), median(r, repeats)};
}

/* ---- the two floors: products and bytes ------------------------------------------------------ */

/* out [M,N] = a b with a [M,K] and b [K,N], stored as CBLAS is told. */
struct Product { int M, N, K; CBLAS_TRANSPOSE a, b; };

static float *scratch_a, *scratch_b, *scratch_out;   /* large enough for every product here */

static void scratch_open(size_t a, size_t b, size_t out) {
    float **all[] = {&scratch_a, &scratch_b, &scratch_out};
    size_t sizes[] = {a, b, out};
    for (int k = 0; k < 3; k++) {
        *all[k] = check_alloc(sizes[k], sizeof(float), "the benchmark");
        for (size_t i = 0; i < sizes[k]; i++) (*all[k])[i] = (float)(i % 13) / 13 - 0.5f;
    }
}

static void scratch_close(void) { free(scratch_a), free(scratch_b), free(scratch_out); }

static void product_rows(const struct Product *p, int first, int rows) {
    int lda = p->a == CblasNoTrans ? p->K : p->M, ldb = p->b == CblasNoTrans ? p->N : p->K;
    size_t offset = p->a == CblasNoTrans ? (size_t)first * (size_t)lda : (size_t)first;
    cblas_sgemm(CblasRowMajor, p->a, p->b, rows, p->N, p->K, 1, scratch_a + offset, lda, scratch_b,
                ldb, 0, scratch_out + (size_t)first * (size_t)p->N, p->N);
}

/* Seconds of one product: OpenBLAS's own threading, or a split over rows; the better of the two. */
static double product_seconds(const struct Product *p) {
    double begin = seconds();
    product_rows(p, 0, p->M);
    double own = seconds() - begin;
    begin = seconds();
    #pragma omp parallel
    {
        int parts = omp_get_num_threads(), part = omp_get_thread_num();
        int first = (int)((long)p->M * part / parts), last = (int)((long)p->M * (part + 1) / parts);
        product_rows(p, first, last - first);
    }
    double split = seconds() - begin;
    return own < split ? own : split;
}

/* The three products of a linear layer out [N,OC] = x [N,C] w^T: forward, dx, dw. */
static double layer_seconds(int N, int C, int OC) {
    const struct Product products[] = {{N, OC, C, CblasNoTrans, CblasTrans},
                                       {N, C, OC, CblasNoTrans, CblasNoTrans},
                                       {OC, C, N, CblasTrans, CblasNoTrans}};
    double sum = 0;
    for (int i = 0; i < 3; i++) sum += product_seconds(&products[i]);
    return sum;
}

/* Seconds to read 512 MB that no cache holds, all threads. */
static double read_seconds(void) {
    static float *memory;
    size_t n = (size_t)128000000;
    float sum = 0;
    if (!memory) {
        memory = check_alloc(n, sizeof *memory, "the benchmark");
        memset(memory, 1, n * sizeof *memory);
    }
    double begin = seconds();
    #pragma omp parallel for simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += memory[i];
    double end = seconds();
    if (sum == 1) puts("");   /* so that the sum is needed */
    return end - begin;
}

/* ---- a GPT-2 124M training step -------------------------------------------------------------- */

static void train_step(void *context) { learner_update(context, 0, 4, 64); }

/* All products of 12 layers and the head, 256 tokens, forward and backward. */
static double step_products(void *context) {
    (void)context;
    double layer = layer_seconds(256, 768, 2304) + layer_seconds(256, 768, 768) +
                   layer_seconds(256, 768, 3072) + layer_seconds(256, 3072, 768);
    return 12 * layer + layer_seconds(256, 768, 50257);
}

static void bench_step(void) {
    struct Learner l;
    struct Model *model = bench_model("gpt2", ops_open("cpu", "auto", 0));
    learner_open(&l, model, 4, 64, 256, RECOMPUTE_NONE, false);
    scratch_open((size_t)256 * 50257, (size_t)50257 * 768, (size_t)256 * 50257 + 50257 * 768);
    struct Timing t = compare_to_floor(train_step, step_products, &l, 15);
    printf("step     GPT-2 124M, B=4 T=64: %.0f ms a training step, its products %.0f ms, ratio "
           "%.3f\n", 1e3 * t.ours, 1e3 * t.floor, t.ratio);
    scratch_close();
    learner_close(&l);
}

/* ---- the head -------------------------------------------------------------------------------- */

struct HeadBench {
    const struct Ops *ops;
    struct Head head;
    struct HeadTokens tokens;
    floatX *E, *W, *dE;
    float *dW;
    void *workspace;
};

static void head_coefficients(void *context, int first, int rows, const struct HeadStats *stats,
                              float *dlogp, float *dentropy) {
    (void)context, (void)first, (void)stats;
    for (int i = 0; i < rows; i++) dlogp[i] = -1e-3f, dentropy[i] = -1e-5f;
}

static void head_both(void *context) {
    struct HeadBench *h = context;
    const struct HeadStats none = {0};
    h->ops->head_forward_backward(&none, h->dE, h->dW, h->E, h->W, &h->tokens, &h->head,
                                  head_coefficients, NULL, h->workspace);
}

static double head_products(void *context) {
    struct HeadBench *h = context;
    return layer_seconds(h->tokens.N, h->head.C, h->head.V);
}

static void bench_head(void) {
    struct HeadBench h = {.ops = ops_open("cpu", "auto", 0), .head = {768, 50257, 50257, 1},
                          .tokens = {.n = 1024, .N = 1024}};
    size_t N = 1024, C = (size_t)h.head.C, V = (size_t)h.head.V;
    struct OpsShape shape = {.N = (int)N, .C = h.head.C, .V = h.head.V, .Vp = h.head.Vp,
                             .NH = 1, .NKV = 1, .HS = 64, .F = 64, .max_T = 1, .R = 1,
                             .max_length = 1};
    size_t extra = h.ops->workspace_size(&shape);
    scratch_open(N * V, V * C, N * V + V * C);
    h.E = h.ops->alloc(N * C * 4), h.W = h.ops->alloc(V * C * 4);
    h.dE = h.ops->alloc(N * C * 4), h.dW = h.ops->alloc(V * C * 4);
    h.tokens.row = h.ops->alloc(N * 4), h.tokens.target = h.ops->alloc(N * 4);
    h.workspace = h.ops->alloc(extra);
    h.ops->fill_zero(h.dW, V * C * 4);
    h.ops->upload(h.E, scratch_b, N * C * 4), h.ops->upload(h.W, scratch_b, V * C * 4);
    int *index = check_alloc(N, sizeof *index, "the benchmark");
    for (int i = 0; i < (int)N; i++) index[i] = i;
    h.ops->upload(h.tokens.row, index, N * 4), h.ops->upload(h.tokens.target, index, N * 4);
    struct Timing t = compare_to_floor(head_both, head_products, &h, 15);
    double materialised = (double)(N * V * 4);
    printf("head     N=1024 C=768 V=50257, logp and entropy, forward + backward: %.0f ms, its "
           "three products %.0f ms, ratio %.3f; extra memory %.0f MB = %.2f of the materialised "
           "form's %.0f MB\n", 1e3 * t.ours, 1e3 * t.floor, t.ratio, 1e-6 * (double)extra,
           (double)extra / materialised, 1e-6 * materialised);
    void *owned[] = {h.E, h.W, h.dE, h.dW, h.tokens.row, h.tokens.target, h.workspace};
    for (int i = 0; i < 7; i++) h.ops->free(owned[i]);
    free(index);
    scratch_close();
}

/* ---- decode ---------------------------------------------------------------------------------- */

enum { DECODE_TOKENS = 48 };

/* The floor of a decode step: it must read the weights once, and do two operations per weight and
   row. The larger of the two times, at the rates measured just before. */
static double decode_floor(void *context) {
    const struct Generation *d = context;
    const struct Product p = {1024, 3072, 768, CblasNoTrans, CblasTrans};
    double bytes = read_seconds() / 512e6 * 4 * d->products;
    double flops = product_seconds(&p) / (2.0 * p.M * p.N * p.K) * 2 * d->products;
    double step = d->request.group * flops > bytes ? d->request.group * flops : bytes;
    return DECODE_TOKENS * step;
}

/* Tokens per second of whole generations: `batch` completions of one prompt. */
static void bench_decode_batch(const struct Model *model, int batch) {
    struct Generation g;
    generation_open(&g, model, batch, DECODE_TOKENS);
    struct Timing t = compare_to_floor(generation_run, decode_floor, &g, 5);
    printf("decode   GPT-2 124M float32, batch %2d: %6.0f tokens/s, floor %6.0f, %.0f %%\n", batch,
           batch * DECODE_TOKENS / t.ours, batch * DECODE_TOKENS / t.floor, 100 / t.ratio);
    generation_close(&g);
}

static void bench_decode(void) {
    const struct Product p = {1024, 3072, 768, CblasNoTrans, CblasTrans};
    scratch_open(1024 * 768, 3072 * 768, 1024 * 3072);
    product_seconds(&p), read_seconds();
    printf("floors   products %.0f GFLOP/s, reading memory %.1f GB/s\n",
           2e-9 * p.M * p.N * p.K / product_seconds(&p), 0.512 / read_seconds());
    struct Model *model = bench_model("gpt2", ops_open("cpu", "auto", 0));
    const int batches[] = {1, 8, 32, 64};
    for (int i = 0; i < 4; i++) bench_decode_batch(model, batches[i]);
    model_free(model);
    scratch_close();
}

/* ---- the built-in task, as the program itself logs it ---------------------------------------- */

enum { TASK_STEPS = 60 };

/* Medians of the last TASK_STEPS / 2 steps of a short run of ./train. */
static void bench_task(void) {
    static const char run[] = "./train --quiet --overwrite --run build/bench-run --eval-every 0 "
                              "--warm-start 100 --steps 60 --save-every 0 --rollouts-every 0";
    static const char *const keys[] = {"step_time", "perf/gen_tok_s", "timing/monitor",
                                       "timing/gen", "timing/update"};
    double values[5][TASK_STEPS];
    char *line = NULL;
    size_t capacity = 0;
    int n = 0;
    if (system(run) != 0) die_machine("the benchmark could not run: %s", run);
    FILE *log = fopen("build/bench-run/metrics.jsonl", "r");
    if (!log) die_machine("build/bench-run/metrics.jsonl is missing");
    while (n < TASK_STEPS / 2 && getline(&line, &capacity, log) >= 0) {
        cJSON *step = cJSON_Parse(line);
        if (cJSON_GetObjectItem(step, "step")->valueint > TASK_STEPS / 2) {
            for (int k = 0; k < 5; k++)
                values[k][n] = cJSON_GetObjectItem(step, keys[k])->valuedouble;
            n++;
        }
        cJSON_Delete(step);
    }
    fclose(log);
    free(line);
    double medians[5];
    for (int k = 0; k < 5; k++) medians[k] = median(values[k], n);
    printf("task     countdown, 32 prompts x 16 completions, 4 updates: %.0f sampled tokens/s, "
           "%.1f RL steps/s (rollout %.0f ms, updates %.0f ms), monitors %.1f %% of a step\n",
           medians[1], 1 / medians[0], 1e3 * medians[3], 1e3 * medians[4],
           100 * medians[2] / medians[0]);
}

/* ---- what the monitors cost ------------------------------------------------------------------ */

/* A GPT-2 124M step of RL: UPDATES updates on 4 completions of 64 tokens each, then the change of
   entropy measured on one of the 32 completions; attention entropy from the first update. */
enum { UPDATES = 8, COMPLETIONS = 4 * UPDATES, LENGTH = 65 };

static bool monitors_on;

static void monitored_step(void *context) {
    static struct Experience e;
    struct Learner *g = context;
    if (monitors_on) trainer_watch_attention(g->trainer);
    for (int u = 0; u < UPDATES; u++) learner_update(g, 4 * u, 4, 64);
    if (!monitors_on) return;
    if (!e.count) {
        e.count = COMPLETIONS;
        e.start = (int *)g->set.start, e.loss_start = (int *)g->set.loss_start;
        e.token = (int *)g->set.token, e.loss_mask = (unsigned char *)g->set.loss_mask;
        e.length = check_alloc(COMPLETIONS, sizeof(int), "the benchmark");
        e.entropy = check_alloc(COMPLETIONS * LENGTH, sizeof(float), "the benchmark");
        for (int i = 0; i < COMPLETIONS; i++) e.length[i] = LENGTH - 1;
    }
    monitor_entropy_push(g->trainer, &e, 1, -1);
}

static double unmonitored_step(void *context) {
    double begin = seconds();
    monitors_on = false;
    monitored_step(context);
    monitors_on = true;
    return seconds() - begin;
}

static void bench_monitors(void) {
    struct Learner g;
    struct Model *model = bench_model("gpt2", ops_open("cpu", "auto", 0));
    learner_open(&g, model, COMPLETIONS, 64, 256, RECOMPUTE_NONE, true);
    monitors_on = true;
    struct Timing t = compare_to_floor(monitored_step, unmonitored_step, &g, 5);
    printf("monitors GPT-2 124M, 8 updates of 4 x 64 tokens: %.0f ms with all monitors, %.0f ms "
           "without, ratio %.3f\n", 1e3 * t.ours, 1e3 * t.floor, t.ratio);
    learner_close(&g);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } benches[] = {
        {"step", bench_step}, {"head", bench_head}, {"decode", bench_decode}, {"task", bench_task},
        {"monitors", bench_monitors}};
    launch_prepare(argv);
    int threads = launch_threads(0);
    printf("machine  %d threads, OpenBLAS %s\n", threads, launch_blas_name());
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++) {
        if (bench_wanted(benches[i].name, argc, argv, 1)) benches[i].run();
        fflush(stdout);
    }
    return 0;
}
